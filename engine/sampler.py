"""Sampler: the logits of one step to one token per row, for the whole batch at once.

Order: logit bias, stop tokens barred before `min_tokens`, penalties, temperature, top-k, top-p, min-p.
"""

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from headway.engine.draw import Draws, draw, draw_filtered, uniform
from headway.engine.errors import RequestFailed
from headway.engine.logprobs import logprobs
from headway.engine.messages import Logprob, SamplingParams
from headway.engine.penalties import Penalties, uses_penalties
from headway.engine.request import Sequence

# Below it a float32 softmax is one-hot anyway; vLLM draws the same line.
GREEDY_BELOW = 1e-5


@dataclass(frozen=True, slots=True)
class Sample:
    """The next token of one sequence, with its log-probability if the request asked for it."""

    token: int
    logprob: Logprob | None


class Sampler:
    """Draws tokens; keeps what it must remember of a request until `release`.

    A seeded row depends on its own logits, its seed and the number of tokens generated so far, never on
    its neighbours. Log-probabilities are the model's own, before any setting of the request.

    Args:
        vocab_size: columns of the logits.
        eos_token_ids: barred, with the request's stop tokens, until `min_tokens` are generated.
    """

    def __init__(self, vocab_size: int, eos_token_ids: Iterable[int] = ()) -> None:
        self._vocab_size = vocab_size
        self._eos_token_ids = tuple(eos_token_ids)
        self._penalties = Penalties(vocab_size)
        self._biases: dict[Sequence, tuple[Tensor, Tensor]] = {}
        self._random = random.SystemRandom()

    @torch.inference_mode()
    def sample(self, logits: Tensor, sequences: list[Sequence]) -> list[Sample | RequestFailed]:
        """Choose the next token of each sequence.

        Args:
            logits: float32 [S, V], a row for each sequence; changed in place.
            sequences: S sequences.

        Returns:
            A sample for each row, or RequestFailed for a row whose logits allow no token.
        """
        params = [sequence.submit.sampling for sequence in sequences]
        reported = [row for row, p in enumerate(params) if p.logprobs is not None]
        raw = logits[reported] if reported else None
        self._adjust(logits, sequences)
        best, tokens = _best(logits)
        drawn = [row for row, p in enumerate(params) if p.temperature >= GREEDY_BELOW]
        plain = [row for row in drawn if not self._filters(params[row])]
        filtered = [row for row in drawn if self._filters(params[row])]
        if plain:
            tokens[plain] = draw(logits[plain], self._draws(plain, sequences, logits.device))
        if filtered:
            tokens[filtered] = draw_filtered(
                logits[filtered], self._draws(filtered, sequences, logits.device)
            )
        reports: dict[int, Logprob] = {}
        if raw is not None:
            top = [params[row].logprobs or 0 for row in reported]
            reports = dict(zip(reported, logprobs(raw, tokens[reported], top), strict=True))
        return [
            Sample(token, reports.get(row)) if math.isfinite(value) else _no_token(value)
            for row, (token, value) in enumerate(zip(tokens.tolist(), best.tolist(), strict=True))
        ]

    @torch.inference_mode()
    def score(self, logits: Tensor, token_ids: Tensor, top: int) -> list[Logprob]:
        """Log-probabilities of given tokens, for prompts.

        Args:
            logits: float32 [R, V].
            token_ids: int64 [R], the token that follows each row.
            top: number of alternatives for each.

        Raises:
            RequestFailed: a row holds no probabilities.
        """
        for value in logits.max(-1).values.tolist():
            if not math.isfinite(value):
                raise _no_token(value)
        return logprobs(logits, token_ids.to(logits.device, torch.int64), [top] * len(token_ids))

    def release(self, sequence: Sequence) -> None:
        """Forget a sequence that has ended."""
        self._penalties.release(sequence)
        self._biases.pop(sequence, None)

    def _adjust(self, logits: Tensor, sequences: list[Sequence]) -> None:
        """Everything that can change which token is the best one, in place."""
        biased = [row for row, sequence in enumerate(sequences) if sequence.submit.sampling.logit_bias]
        if biased:
            pairs = [self._bias(sequences[row], logits.device) for row in biased]
            index = [torch.full_like(ids, row) for row, (ids, _) in zip(biased, pairs, strict=True)]
            columns = torch.cat([ids for ids, _ in pairs])
            logits.index_put_(
                (torch.cat(index), columns), torch.cat([values for _, values in pairs]), accumulate=True
            )
        barred = [(row, token) for row, s in enumerate(sequences) for token in self._barred(s)]
        if barred:
            rows, columns = torch.tensor(barred, device=logits.device).T
            logits[rows, columns] = -math.inf
        penalised = [row for row, s in enumerate(sequences) if uses_penalties(s.submit.sampling)]
        if penalised:
            part = logits[penalised]
            self._penalties.apply(part, [sequences[row] for row in penalised])
            logits[penalised] = part

    def _bias(self, sequence: Sequence, device: torch.device) -> tuple[Tensor, Tensor]:
        """Ids and values of the request's logit bias, on the device."""
        if sequence not in self._biases:
            bias = sequence.submit.sampling.logit_bias
            self._biases[sequence] = (
                torch.tensor(list(bias), device=device),
                torch.tensor(list(bias.values()), device=device, dtype=torch.float32),
            )
        return self._biases[sequence]

    def _barred(self, sequence: Sequence) -> tuple[int, ...]:
        params = sequence.submit.sampling
        if sequence.num_generated >= params.min_tokens:
            return ()
        return self._eos_token_ids + params.stop_token_ids

    def _filters(self, params: SamplingParams) -> bool:
        return 0 < params.top_k < self._vocab_size or params.top_p < 1.0 or params.min_p > 0.0

    def _draws(self, rows: list[int], sequences: list[Sequence], device: torch.device) -> Draws:
        chosen = [sequences[row] for row in rows]
        params = [sequence.submit.sampling for sequence in chosen]

        def column(values: Iterable[float]) -> Tensor:
            return torch.tensor(list(values), dtype=torch.float64, device=device)

        return Draws(
            temperature=column(p.temperature for p in params),
            top_k=column(p.top_k or self._vocab_size for p in params).clamp_(max=self._vocab_size).long(),
            top_p=column(p.top_p if p.top_p < 1.0 else math.inf for p in params),
            min_p=column(p.min_p for p in params),
            uniform=column(self._uniform(sequence) for sequence in chosen),
        )

    def _uniform(self, sequence: Sequence) -> float:
        seed = sequence.submit.sampling.seed
        if seed is None:
            return self._random.getrandbits(48) / 2**48
        return uniform(seed, sequence.num_generated)


def _best(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Value and column of each row's maximum; the first of equal ones, NaN before all."""
    if logits.device.type != "cpu":
        return logits.max(-1)
    tokens = torch.from_numpy(logits.numpy().argmax(-1))  # PyTorch's takes ten times as long on a CPU
    return logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1), tokens


def _no_token(best: float) -> RequestFailed:
    reason = "every token is ruled out" if best == -math.inf else "the model's logits are not finite"
    return RequestFailed(f"no token can be sampled: {reason}")
