"""Where a batch's decode rows find their keys, and how a CPU best reads them; `cpu_schedule` has the costs.

A decode sees every key, so their order does not matter. A row's keys are cut into runs of adjacent slots.
Runs of several rows that are equally long and evenly spaced, as those of requests that came together or that
share a prefix, are read where they lie by one call. What is left is copied side by side, several rows to a
call. Plain loops: the numbers are few, and a NumPy call costs as much as twenty of them.
"""

from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from headway.kernels.paged_attention.cpu_schedule import ReadCost
from headway.kernels.paged_attention.plan import AttentionPlan

SPLIT_TOKENS = 2048  # a decode shorter than this is not worth several threads

Rows = slice | Tensor  # distinct decode rows


class InPlace(NamedTuple):
    """`batch` runs of `length` slots, `step` apart from slot `start` on: one for each of `rows`, or, with
    `split`, all for one row, so that all cores have work."""

    rows: Rows
    start: int
    step: int
    length: int
    batch: int
    split: bool
    fresh: bool = False  # no part before it has keys of these rows


class Gathered(NamedTuple):
    """Keys of `batch` rows copied side by side, padded to one length."""

    rows: Rows
    slots: Tensor  # int64 [batch * length]
    length: int
    batch: int
    padding: Tensor | None  # [batch, 1, 1, length], 0 or -inf
    fresh: bool = False  # no part before it has keys of these rows


Part = InPlace | Gathered


class Run(NamedTuple):
    """Adjacent slots of one row."""

    row: int
    first: int
    length: int


class Piece(NamedTuple):
    """What one row has in a gathered batch."""

    length: int
    runs: list[Run]


def schedule_decodes(
    plan: AttentionPlan, decodes: list[int], window: int | None, cost: ReadCost
) -> list[Part]:
    """How to read the keys of the sequences `decodes`, which are the rows; a part of all rows comes first."""
    runs = [run for row, b in enumerate(decodes) for run in _runs(plan, row, b, window)]
    together: list[list[Run]] = []
    if cost.in_place:
        together = [runs] if len(runs) == 1 else list(_evenly_spaced(runs, len(decodes), cost.direct_tokens))
    taken = {run for group in together for run in group}
    parts: list[Part] = [part for group in together for part in _in_place(group, cost.num_kv_heads)]
    pieces = _pieces([run for run in runs if run not in taken], cost.gather_tokens)
    parts += [_gathered(group) for group in _alike(pieces, cost.gather_tokens)]
    parts.sort(key=lambda part: part.rows != slice(0, len(decodes)) if isinstance(part.rows, slice) else True)
    return list(_marked(parts))


def _marked(parts: list[Part]) -> Iterator[Part]:
    """The same, those that are the first of all their rows marked as fresh."""
    seen: set[int] = set()
    for part in parts:
        rows = part.rows
        own = set(range(rows.start, rows.stop) if isinstance(rows, slice) else rows.tolist())
        yield part if own & seen else part._replace(fresh=True)
        seen |= own


def _runs(plan: AttentionPlan, row: int, b: int, window: int | None) -> Iterator[Run]:
    size, kv_len = plan.page_size, plan.host_kv_lens[b]
    begin = 0 if window is None else max(0, kv_len - window)
    pages = plan.host_tables[b][begin // size :].tolist()
    first = pages[0] * size + begin % size
    end = (pages[0] + 1) * size
    for page in pages[1:]:
        if page * size != end:
            yield Run(row, first, end - first)
            first = page * size
        end = (page + 1) * size
    yield Run(row, first, end - -kv_len % size - first)


def _evenly_spaced(runs: list[Run], rows: int, worth: int) -> Iterator[list[Run]]:
    """Groups of equal runs of different rows, each of at least `worth` tokens in all."""
    groups: list[list[Run]] = []
    candidates = [run for run in runs if run.length * rows >= worth]
    for run in sorted(candidates, key=lambda run: run.length):
        if groups and len(groups[-1]) == 2 and not _continues(groups[-1], run):
            groups.append([groups[-1].pop()])  # two runs are always evenly spaced: try with the next ones
        if groups and _continues(groups[-1], run):
            groups[-1].append(run)
        else:
            groups.append([run])
    return (group for group in groups if len(group) * group[0].length >= worth)


def _continues(group: list[Run], run: Run) -> bool:
    last = group[-1]
    step = run.first - last.first
    even = len(group) == 1 or step == last.first - group[-2].first
    return run.length == last.length and run.row > last.row and step >= 0 and even


def _in_place(group: list[Run], num_kv_heads: int) -> Iterator[InPlace]:
    _, first, length = group[0]
    rows = _rows([run.row for run in group])
    if len(group) > 1:
        yield InPlace(rows, first, group[1].first - first, length, len(group), split=False)
        return
    splits = max(1, min(torch.get_num_threads() // num_kv_heads, length // SPLIT_TOKENS))
    each, rest = divmod(length, splits)
    yield InPlace(rows, first, each, each, splits, split=splits > 1)
    if rest:
        yield InPlace(rows, first + each * splits, 0, rest, 1, split=False)


def _pieces(runs: list[Run], limit: int) -> list[Piece]:
    """Each row's runs, cut where they exceed `limit` tokens; the longest piece first."""
    pieces: list[Piece] = []
    for _, own in groupby(runs, key=itemgetter(0)):
        piece, total = list(own), 0
        for run in piece:
            total += run.length
        pieces += [Piece(total, piece)] if total <= limit else _cut(piece, limit)
    pieces.sort(key=itemgetter(0), reverse=True)
    return pieces


def _cut(runs: list[Run], limit: int) -> Iterator[Piece]:
    piece, room = [], limit
    for row, first, length in runs:
        while length:
            taken = min(length, room)
            piece.append(Run(row, first, taken))
            first, length, room = first + taken, length - taken, room - taken
            if not room:
                yield Piece(limit, piece)
                piece, room = [], limit
    if piece:
        yield Piece(limit - room, piece)


def _alike(pieces: list[Piece], limit: int) -> Iterator[list[Piece]]:
    """Pieces of different rows and like length together: at most a quarter of a group is padding."""
    group: list[Piece] = []
    rows: set[int] = set()
    for piece in pieces:
        row = piece.runs[0].row
        if group:
            longest = group[0].length
            full = longest * (len(group) + 1) > limit
            if full or row in rows or piece.length < 0.75 * longest:
                yield group
                group, rows = [], set()
        group.append(piece)
        rows.add(row)
    if group:
        yield group


def _gathered(group: list[Piece]) -> Gathered:
    """`group` begins with its longest piece."""
    longest = group[0].length
    firsts: list[int] = []
    counts: list[int] = []
    for length, runs in group:
        firsts += [run.first for run in runs]
        counts += [run.length for run in runs]
        missing = longest - length
        for run in runs if missing else ():
            # Padding is real slots of the same row, never one whose content is unknown.
            firsts.append(run.first)
            counts.append(min(run.length, missing))
            missing -= counts[-1]
            if not missing:
                break
    lengths = np.array(counts)
    starts = np.array(firsts) - (np.cumsum(lengths) - lengths)
    slots = np.repeat(starts, lengths) + np.arange(len(group) * longest)
    padding = None
    if group[-1].length < longest:
        hidden = np.arange(longest) >= np.array([[piece.length] for piece in group])
        padding = torch.from_numpy(np.where(hidden, np.float32("-inf"), np.float32(0)))[:, None, None]
    rows = _rows([piece.runs[0].row for piece in group])
    return Gathered(rows, torch.from_numpy(slots), longest, len(group), padding)


def _rows(rows: list[int]) -> Rows:
    adjacent = rows == list(range(rows[0], rows[0] + len(rows)))
    return slice(rows[0], rows[0] + len(rows)) if adjacent else torch.tensor(rows)
