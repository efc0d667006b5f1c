"""KVCache: the keys and values of all layers, in pages."""

from collections.abc import Collection, Sequence

import torch

from headway.engine.layer_spec import LayerSpec
from headway.engine.sidecars import Sidecar, SidecarStore


def page_bytes(specs: Sequence[LayerSpec], page_size: int, dtype: torch.dtype) -> int:
    """Bytes that the keys and values of one page of `page_size` tokens cost over all layers."""
    return page_size * sum(spec.bytes_per_token(dtype) for spec in specs)


class KVCache:
    """Paged keys and values, one pair of tensors [num_pages, page_size, num_kv_heads, dim] for each layer.

    A layer that shares another's KV has none of its own. An MLA layer stores keys only: its value is the
    first `latent_dim` numbers of the key. Which page belongs to whom is not known here.

    Attributes:
        sidecars: what is kept of every page beside them.
    """

    def __init__(
        self,
        specs: Sequence[LayerSpec],
        num_pages: int,
        page_size: int,
        dtype: torch.dtype,
        device: torch.device,
        sidecars: Collection[Sidecar] = (),
    ) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        self.sidecars = SidecarStore(sidecars, specs, num_pages, page_size, dtype, device)
        self._pages: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        for spec in specs:
            if not spec.owns_cache:
                continue
            shape = (num_pages, page_size, spec.num_kv_heads)
            # Not zeroed: memory of a CPU that no request needs is then never touched.
            key = torch.empty(*shape, spec.key_dim, dtype=dtype, device=device)
            if spec.latent_dim is None:
                value = torch.empty(*shape, spec.value_dim, dtype=dtype, device=device)
            else:
                value = key[..., : spec.latent_dim]
            self._pages[spec.layer_idx] = (key, value)

    def pages(self, layer_idx: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of a layer that owns some; views, to be read and written in place."""
        return self._pages[layer_idx]

    def poison(self, page: int) -> None:
        """Make a page that nobody writes tell by its NaN if anybody reads it."""
        for each in self._pages.values():
            for cache in each:
                cache[page].fill_(torch.nan)

    def nbytes(self) -> int:
        """Bytes held by the cache."""
        return sum(
            key.nbytes + (0 if value.data_ptr() == key.data_ptr() else value.nbytes)
            for key, value in self._pages.values()
        )
