"""One answer under way: from sampled tokens to text, and when to end."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from collections.abc import Set

from .request import FinishReason, Output, StreamDecoder, Timings, TokenLogprobs, Usage
from .sampler import SamplerState
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
        self.stop_ids = stop_ids
        self._stops = StopStrings(sampler_state.params.stop)
        self._submitted = submitted
        self.started: float | None = None  # the first step that it took part in
        self._first: float | None = None  # its first token
        self._last: float | None = None  # its latest token

    def accept(self, tokens: Seq[int], logprobs: tuple[TokenLogprobs, ...] | None, now: float) -> Output:
        """Add tokens that the sampler chose, up to the one that ends the answer: then the output says why."""
        self._last = now
        if self._first is None:
            self._first = now
        text, count, reason, stop = self._text(tokens)
        tokens = tuple(tokens[:count])
        logprobs = logprobs and logprobs[:count]
        self.sequence.extend(tokens)
        if reason is None:
            return Output(self.request, self.index, text, tokens, logprobs)
        return self._end(reason, now, text, tokens, logprobs, stop=stop)

    def _text(self, tokens: Seq[int]) -> tuple[str, int, FinishReason | None, str | int | None]:
        """What can be shown after `tokens`, or after as many of them as the answer takes; why it ends, and by what."""
        room, stops, end = self.sequence.limit - self.sequence.length, self._stops, None
        if not self.stop_ids.isdisjoint(tokens):
            end = next(i for i, token in enumerate(tokens) if token in self.stop_ids)
        shown = tokens[:end]
        text, count = self._watched(shown) if stops.any else (self._decoder.push(shown), len(shown))
        if stops.found is not None:
            return text, count, "stop", stops.found
        if end is not None:
            return text + self._rest(), count + 1, "stop", tokens[end]
        if count < room:
            return text, count, None, None
        text += self._rest()  # these characters may have completed a stop string
        return text, count, "length" if stops.found is None else "stop", stops.found

    def _watched(self, tokens: Seq[int]) -> tuple[str, int]:
        """What can be shown of `tokens`, up to the one that completes a stop string, and how many these are."""
        unwatched, pieces = self.sampler_state.params.min_tokens - self.sequence.answered, list[str]()
        for count, token in enumerate(tokens, 1):
            piece = self._decoder.push((token,))
            pieces.append(self._stops.push(piece) if count > unwatched else piece)
            if self._stops.found is not None:
                return "".join(pieces), count
        return "".join(pieces), len(tokens)

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
