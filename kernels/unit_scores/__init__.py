"""TEMPORARY by the lead so that imports work; the owner of this op overwrites it."""
import torch
def bound_query(query):
    return torch.cat((query.relu(), -(-query).relu()), -1)
def unit_scores(query, table, plan, *, scale=1.0, softcap=None, reduce="none", active=None):
    b, hq, d = query.shape; units, hkv = table.shape[1:3]
    width = units * max(map(len, plan.host_tables)); out = torch.full((b, hq, width), float("-inf"))
    for i, (pages, n) in enumerate(zip(plan.host_tables, plan.host_kv_lens)):
        if active is not None and not active[i]: continue
        rows = table[torch.as_tensor(pages)].flatten(0, 1)[: -(-n * units // plan.page_size)].float()
        s = torch.einsum("hgd,nhd->hgn", query[i].float().view(hkv, -1, d), rows).flatten(0, 1) * scale
        if softcap is not None: s = softcap * torch.tanh(s / softcap)
        out[i, :, : s.shape[-1]] = s
    if reduce == "none": return out
    g = out.view(b, hkv, -1, width)
    return g.amax(2) if reduce == "max" else g.mean(2)
