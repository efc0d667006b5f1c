"""TEMPORARY by the lead so that imports work; the owner of this op overwrites it."""
import torch
def summarise_pages(key_cache, pages, filled, *, bounds=None, mean=None):
    for p, f in zip(pages.tolist(), filled.tolist()):
        if p < 0: continue
        k = key_cache[p, :f].float()
        if bounds is not None: bounds[p, 0] = torch.cat((k.amax(0), k.amin(0)), -1)
        if mean is not None: mean[p, 0] = k.mean(0)
