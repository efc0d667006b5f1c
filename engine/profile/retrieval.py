"""retrieval: which heads copy the answer out of the context (retrieval heads, arXiv 2404.15574).

While the model writes the value of a fact, a head scores for every token of that value in the haystack that
it looks at most at the moment when the model writes the same token. Its score is the share of the value's
tokens, each counted once (the paper's code counts repeats), averaged over the questions that the model
answers. The true answer is fed along and what the model would have written decides, so that all trials stop
alike.

Tensors: `query_heads` [layers, query heads]; `kv_heads` [layers, KV heads], the maximum over each group;
`by_seed` [seeds, layers, query heads].
"""

from collections.abc import Sequence
from random import Random
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from headway.engine.config_section import Positive, Section
from headway.engine.errors import HeadwayError
from headway.engine.layer_spec import LayerSpec
from headway.engine.loaded import LoadedModel
from headway.engine.profile.artefact import Artefact, made
from headway.engine.profile.attention_rows import row_logits
from headway.engine.profile.haystacks import Haystack, Question, maker
from headway.engine.profile.head_scores import Head, by_kv_head, heads_from, rank_correlation, table
from headway.engine.profile.pictures import Figure, heat_map
from headway.engine.profile.progress import Progress, tracked
from headway.engine.profile.watched_run import WatchedRun

Share = Annotated[float, Field(ge=0, le=1)]


class Settings(Section):
    """Which haystacks, which answers count, and which heads are silenced as a proof."""

    lengths: tuple[Annotated[int, Field(ge=256)], ...] = Field((1024, 2048, 4096), min_length=1)
    seeds: tuple[int, ...] = Field((1, 2, 3), min_length=1, description="Each makes haystacks of its own.")
    haystacks: Positive = Field(6, description="For each length and seed.")
    questions: Positive = Field(8, description="For each haystack, where it holds as many facts.")
    recall: Share = Field(0.5, description="A question counts if a larger share of its answer comes out.")
    threshold: Share = Field(0.5, description="Heads with at least this score are silenced together.")
    draws: Positive = Field(3, description="Random sets of other heads, silenced for comparison.")


def run(loaded: LoadedModel, settings: Settings, progress: Progress) -> Artefact:
    """Score every head, then silence the best ones, and others, on the haystacks of the first seed.

    Raises:
        ConfigError: no haystacks of these lengths can be made for this model.
        HeadwayError: the model answers no question, so that nothing can be told about its heads.
    """
    make, longest = maker(loaded), max(settings.lengths)
    texts = {
        seed: [
            make(length, index, settings.questions, seed)
            for length in settings.lengths
            for index in range(settings.haystacks)
        ]
        for seed in settings.seeds
    }
    with WatchedRun(loaded, longest) as watched:
        trials = {seed: _trials(watched, loaded, texts[seed], seed, settings, progress) for seed in texts}
        by_seed = torch.stack([torch.stack(found).mean(0) for found in trials.values()])
        query_heads = by_seed.mean(0)
        silenced = _silenced(watched, texts[settings.seeds[0]], query_heads, settings, progress)
    tensors = {
        "query_heads": query_heads,
        "kv_heads": by_kv_head(query_heads, loaded.specs),
        "by_seed": by_seed,
    }
    findings = {
        "questions": sum(len(text.questions) for of_seed in texts.values() for text in of_seed),
        "answered": sum(map(len, trials.values())),
        "rank_correlation_over_seeds": rank_correlation(list(by_seed)),
        "retrieval_heads": heads_from(query_heads, settings.threshold),
        "silenced": silenced,
    }
    return made(
        loaded, "retrieval", tensors,
        settings=settings, seeds=settings.seeds, length=longest, findings=findings,
    )  # fmt: skip


def _trials(
    run: WatchedRun,
    loaded: LoadedModel,
    texts: Sequence[Haystack],
    seed: int,
    settings: Settings,
    progress: Progress,
) -> list[Tensor]:
    """Scores [layers, query heads] of every question that counts."""
    found = []
    for text in tracked(progress, f"haystacks of seed {seed}", texts):
        found += scores(run, loaded.specs, text, settings.recall)
    if not found:
        raise HeadwayError(
            f"retrieval: the model answered no question of seed {seed} at the lengths "
            f"{', '.join(map(str, settings.lengths))}; which heads retrieve shows only where it does"
        )
    return found


def scores(run: WatchedRun, specs: Sequence[LayerSpec], text: Haystack, recall: float) -> list[Tensor]:
    """Of every question answered with more than `recall` of its tokens: float32 [layers, query heads]."""
    run.read(text.ids)
    found = []
    for question in text.questions:
        looked: dict[int, Tensor] = {}
        steps = len(question.answer)

        def watch(spec: LayerSpec, query: Tensor, keys: Tensor) -> None:
            rows = query[-1 - steps : -1]  # noqa: B023 - called before the next question
            looked[spec.layer_idx] = row_logits(spec, rows, keys[:-1]).argmax(-1).cpu()  # noqa: B023

        written = run.answer(text.ids, question.ask, question.answer, watch)
        if (written == torch.tensor(question.answer)).float().mean() > recall:
            found.append(table([copied(looked[spec.layer_idx], written, question) for spec in specs]))
    return found


def copied(looked: Tensor, written: Tensor, question: Question) -> Tensor:
    """Share of the value's tokens that each head copies: float32 [Hq].

    Args:
        looked: int64 [R, Hq], where each head looks at most as the model writes.
        written: int64 [R], what it writes.
    """
    places, tokens = torch.tensor(question.places), torch.tensor(question.answer)
    hits = (looked[..., None] == places) & (written[:, None, None] == tokens)
    return hits.any(0).float().mean(-1)


def picture(artefact: Artefact) -> Figure:
    """Heat map of the query heads."""
    return heat_map(artefact.tensors["query_heads"], "retrieval score", "query head", "layer", low=0, high=1)


def _silenced(
    run: WatchedRun, texts: Sequence[Haystack], query_heads: Tensor, settings: Settings, progress: Progress
) -> list[dict[str, Any]]:
    """Exactly answered share with nothing, with the best heads and with others silenced."""
    best, rng = heads_from(query_heads, settings.threshold), Random(settings.seeds[0])
    sets: list[tuple[str, list[Head]]] = [("none", []), ("retrieval heads", best)]
    for _ in range(settings.draws):
        heads = _others(best, query_heads, rng)
        if heads not in [drawn for _, drawn in sets]:
            sets.append(("other heads of the same layers", heads))
    progress.begin("silencing heads", len(sets) * len(texts))
    results = []
    for name, chosen in sets:
        right: list[bool] = []
        with run.silenced(chosen):
            for text in texts:
                run.read(text.ids)
                for question in text.questions:
                    written = run.answer(text.ids, question.ask, question.answer)
                    right.append(written.tolist() == question.answer)
                progress.advance()
        results.append({"silenced": name, "heads": chosen, "exact": round(sum(right) / len(right), 4)})
    return results


def _others(best: Sequence[Head], query_heads: Tensor, rng: Random) -> list[Head]:
    """As many other heads of the same layers, or all of them where there are fewer.

    Heads of other layers would prove nothing: what an early layer does for every token, all depends on.
    """
    drawn: list[Head] = []
    for layer in sorted({layer for layer, _ in best}):
        chosen = [head for other, head in best if other == layer]
        present = (~query_heads[layer].isnan()).nonzero().flatten().tolist()
        rest = [head for head in present if head not in chosen]
        drawn += [(layer, head) for head in sorted(rng.sample(rest, min(len(chosen), len(rest))))]
    return drawn
