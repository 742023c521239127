"""One answer under way: from sampled tokens to text, and when to end."""

from __future__ import annotations

from collections.abc import Sequence as Seq
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
        self.stop_ids = stop_ids
        self._stops = StopStrings(sampler_state.params.stop)
        self._watches = bool(sampler_state.params.stop)
        self._submitted = submitted
        self.started: float | None = None  # the first step that it took part in
        self._first: float | None = None  # its first token
        self._last: float | None = None  # its latest token

    def accept(self, sampled: Seq[Sampled], now: float) -> Output:
        """Add tokens that the sampler chose, up to the one that ends the answer: then the output says why."""
        self._last = now
        if self._first is None:
            self._first = now
        pieces, count, reason, stop = list[str](), 0, None, None
        answered, room = self.sequence.answered, self.sequence.limit - self.sequence.length
        while reason is None and count < len(sampled):
            piece, reason, stop = self._add(sampled[count].token, answered + count + 1, full=count + 1 >= room)
            pieces.append(piece)
            count += 1
        taken, text = sampled[:count], "".join(pieces)
        tokens = tuple([one.token for one in taken])
        self.sequence.extend(tokens)
        logprobs = None
        if self.sampler_state.params.logprobs is not None:
            logprobs = tuple(TokenLogprobs(one.logprob, one.top) for one in taken if one.logprob is not None)
        if reason is None:
            return Output(self.request, self.index, text, tokens, logprobs)
        return self._end(reason, now, text, tokens, logprobs, stop=stop)

    def _add(self, token: int, answered: int, *, full: bool) -> tuple[str, FinishReason | None, str | int | None]:
        """What can be shown after `token`, number `answered` of the answer; why the answer ends with it, if it does,
        and what stopped it. `full`: there is no room for another one.
        """
        if token in self.stop_ids:
            return self._rest(), "stop", token
        text = self._decoder.push(token)
        if self._watches and answered > self.sampler_state.params.min_tokens:
            text = self._stops.push(text)
            if self._stops.found is not None:
                return text, "stop", self._stops.found
        if full:
            text += self._rest()
            # the very last characters may have completed a stop string
            return (text, "length", None) if self._stops.found is None else (text, "stop", self._stops.found)
        return text, None, None

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
