"""TEMPORARY by the lead so that imports work; the owner of this op overwrites it."""
import torch
def selected_attention(query, key_cache, value_cache, plan, indices, unit, *, scale, softcap=None, sinks=None, active=None, out=None, lse=None):
    b, hq, d = query.shape; hkv = key_cache.shape[2]; g = hq // hkv
    if out is None: out = query.new_empty(b, hq, value_cache.shape[3]); lse = torch.empty(b, hq)
    hs = indices.shape[1]
    for i, (pages, n) in enumerate(zip(plan.host_tables, plan.host_kv_lens)):
        if active is not None and not active[i]: continue
        k = key_cache[torch.as_tensor(pages)].flatten(0, 1)[:n].float(); v = value_cache[torch.as_tensor(pages)].flatten(0, 1)[:n].float()
        for h in range(hq):
            u = indices[i, h * hs // hq]; u = u[u >= 0].long()
            t = (u[:, None] * unit + torch.arange(unit)).flatten(); t = t[t < n]
            s = k[t, h // g] @ query[i, h].float() * scale
            if softcap is not None: s = softcap * torch.tanh(s / softcap)
            z = s if sinks is None else torch.cat((s, sinks[h : h + 1].float()))
            l = torch.logsumexp(z, 0) if len(z) else torch.tensor(float("-inf"))
            lse[i, h] = l
            out[i, h] = (torch.exp(s - l) @ v[t, h // g]).to(out.dtype) if len(t) else 0
    return out, lse
