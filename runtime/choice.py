"""One answer under way: from sampled tokens to text, and when to end."""

from __future__ import annotations

from collections.abc import Set

from .request import FinishReason, Output, StreamDecoder, Timings, TokenLogprobs, Usage
from .sampler import Sampled, SamplerState
from .sequence import Sequence
from .stops import StopStrings


class Choice:
    """Answer number `index` of a request. Times are seconds of one monotonic clock."""

    def __init__(
        self,
        request: str,
        index: int,
        sequence: Sequence,
        sampler_state: SamplerState,
        decoder: StreamDecoder,
        stop_ids: Set[int],
        submitted: float,
    ) -> None:
        self.request = request
        self.index = index
        self.sequence = sequence
        self.sampler_state = sampler_state
        self._decoder = decoder
        self._stop_ids = stop_ids
        self._stops = StopStrings(sampler_state.params.stop)
        self._submitted = submitted
        self.started: float | None = None  # the first step that it took part in
        self._first: float | None = None  # its first token
        self._last: float | None = None  # its latest token

    def accept(self, sampled: Sampled, now: float) -> Output:
        """Add a token that the sampler chose. The answer is over if the output has a `finish_reason`."""
        self.sequence.append(sampled.token)
        self._last = now
        if self._first is None:
            self._first = now
        logprobs = None if sampled.logprob is None else (TokenLogprobs(sampled.logprob, sampled.top),)
        tokens = (sampled.token,)
        if sampled.token in self._stop_ids:
            return self._end("stop", now, self._rest(), tokens, logprobs, stop=sampled.token)
        text = self._decoder.push(sampled.token)
        if self.sequence.answered > self.sampler_state.params.min_tokens:
            text = self._stops.push(text)
            if self._stops.found is not None:
                return self._end("stop", now, text, tokens, logprobs, stop=self._stops.found)
        if self.sequence.full:
            text += self._rest()
            if self._stops.found is not None:  # the very last characters completed it
                return self._end("stop", now, text, tokens, logprobs, stop=self._stops.found)
            return self._end("length", now, text, tokens, logprobs)
        return Output(self.request, self.index, text, tokens, logprobs)

    def end(self, reason: FinishReason, now: float, *, error: str | None = None) -> Output:
        """The last output of an answer that ends for a reason outside it. Text held back so far is not shown."""
        return self._end(reason, now, "", (), None if self.sampler_state.params.logprobs is None else (), error=error)

    def _rest(self) -> str:
        """Everything held back: no more tokens follow."""
        shown = self._stops.push(self._decoder.flush())
        return shown if self._stops.found is not None else shown + self._stops.flush()

    def _end(
        self,
        reason: FinishReason,
        now: float,
        text: str,
        tokens: tuple[int, ...],
        logprobs: tuple[TokenLogprobs, ...] | None,
        *,
        stop: str | int | None = None,
        error: str | None = None,
    ) -> Output:
        sequence = self.sequence
        usage = Usage(sequence.prompt, sequence.answered, sequence.reused or 0)
        timings = Timings(
            queue_seconds=(now if self.started is None else self.started) - self._submitted,
            prefill_seconds=None if self._first is None or self.started is None else self._first - self.started,
            first_token_seconds=None if self._first is None else self._first - self._submitted,
            decode_seconds=None if self._first is None or self._last is None else self._last - self._first,
            total_seconds=now - self._submitted,
        )
        return Output(self.request, self.index, text, tokens, logprobs, reason, stop, error, usage, timings)
