"""The model and its context in llama.cpp: texts and tokens, decoding, what each sequence holds."""

from __future__ import annotations

import ctypes
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from llama_orch.contract.process import BATCH_TOKENS, DEFAULT_CONTEXT, KEEPS_WHOLE_WINDOWS, UBATCH_TOKENS, WorkerSpec

from ..generation import (  # fmt: skip
    CannotServe,
    Constraint,
    GenerationFailed,
    LoadAborted,
    Logprob,
    ModelInfo,
    Sampling,
    WrongGrammar,
)
from ..scheduler import Part
from . import backends, deep_stack, model_file, sampler, warm_up
from .binding import GrammarSteps, library, llama_cpp, send_log_to
from .log import LlamaLog, no_memory
from .threads import keep_threads

log = logging.getLogger(__name__)

_SPLIT_MODES = {
    None: llama_cpp.LLAMA_SPLIT_MODE_NONE,
    "layer": llama_cpp.LLAMA_SPLIT_MODE_LAYER,
    "row": llama_cpp.LLAMA_SPLIT_MODE_ROW,
}
# llama_pooling_type of llama.h: vectors of a whole text; 4 is a ranking and makes no vector.
_POOLED, _RANKED = {1, 2, 3}, 4


class LlamaEngine:
    """One model with one context for all slots. See `generation.Engine` for what the methods promise."""

    def __init__(self, spec: WorkerSpec, threads: int) -> None:
        self._spec = spec
        self._threads = threads
        self._log = LlamaLog()
        self._model: Any = None
        self._context: Any = None
        self._memory: Any = None
        self.vocab: Any = None
        self.vocabulary = 0
        self._batch: _Batch | None = None
        self._rows: list[int] = []
        self._pieces: dict[tuple[int, bool], bytes] = {}
        self._ends: frozenset[int] = frozenset()
        self._bytes: dict[int, int] | None = None
        self._window = 0
        self._embedding_length = 0
        # None where the vocabulary is of a kind that cuts no text up beforehand.
        self._pre_tokenizer: str | None = None
        self.grammar_steps = GrammarSteps()
        self._longest_step = 0.0

    def load(self, progress: Callable[[float], bool]) -> ModelInfo:
        """Load the model onto its device and warm it up; see `generation.Engine.load`."""
        model_file.check(Path(self._spec.model_path))
        send_log_to(self._log)
        backends.show_only(self._spec.backend, self._spec.device_uuids or [str(one) for one in self._spec.devices])
        found = backends.load(self._spec.backend, self._spec.cpu_library)
        devices = backends.choose(found, self._spec.backend, self._spec.devices, self._log.last_error_of("CUDA"))
        llama_cpp.llama_backend_init()
        self._model = self._load_model(devices, progress)
        self.vocab = llama_cpp.llama_model_get_vocab(self._model)
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(self.vocab)
        self._ends = frozenset(
            token for token in range(self.vocabulary) if llama_cpp.llama_vocab_is_eog(self.vocab, token)
        )
        if self._meta("tokenizer.ggml.model") == "gpt2":
            self._pre_tokenizer = self._meta("tokenizer.ggml.pre")
        self._window = llama_cpp.llama_model_n_swa(self._model)
        trained = llama_cpp.llama_model_n_ctx_train(self._model)
        context = self._spec.ctx_per_slot or min(trained or DEFAULT_CONTEXT, DEFAULT_CONTEXT)
        self._embedding_length = self._vector_length()
        self._context = self._make_context(context)
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._warm_up(context, trained)
        template = llama_cpp.llama_model_chat_template(self._model, None)
        return ModelInfo(
            context=context,
            trained_context=trained,
            vocabulary=self.vocabulary,
            chat_template=template.decode(errors="replace") if template else None,
            bos_text=self._text_of(llama_cpp.llama_vocab_bos(self.vocab)),
            eos_text=self._text_of(llama_cpp.llama_vocab_eos(self.vocab)),
            embedding_length=self._embedding_length,
            can_copy=not (
                self._window
                or llama_cpp.llama_model_is_recurrent(self._model)
                or llama_cpp.llama_model_is_hybrid(self._model)
            ),
            step_seconds=self._longest_step,
        )

    # --- text

    def tokenize(self, text: str, *, begin: bool = True, rendered: bool = False) -> list[int]:
        """Tokens of `text`; see `generation.Engine.tokenize`."""

        def tokens() -> list[int]:
            return self._tokens(text.encode(errors="replace"), begin and not rendered, rendered or begin)

        if self._pre_tokenizer is None:
            found = tokens()
        else:
            deep_stack.check(text, self._pre_tokenizer)
            found = deep_stack.with_room_for(len(text), tokens)
        # A template may or may not write the first token itself; twice would change the answer.
        if rendered and llama_cpp.llama_vocab_get_add_bos(self.vocab):
            first = llama_cpp.llama_vocab_bos(self.vocab)
            if first >= 0 and found[:1] != [first]:
                found.insert(0, first)
        return found

    def _tokens(self, raw: bytes, add_special: bool, parse_special: bool) -> list[int]:
        size = len(raw) + 8
        while True:
            tokens = (llama_cpp.llama_token * size)()
            count = llama_cpp.llama_tokenize(self.vocab, raw, len(raw), tokens, size, add_special, parse_special)
            if count >= 0:
                return list(tokens[:count])
            size = -count

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes that a token stands for."""
        known = self._pieces.get((token, special))
        if known is not None:
            return known
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            length = llama_cpp.llama_token_to_piece(self.vocab, token, buffer, size, 0, special)
            if length >= 0:
                self._pieces[token, special] = found = buffer.raw[:length]
                return found
            size = -length

    def is_end(self, token: int) -> bool:
        """Whether the token ends an answer."""
        return token in self._ends

    def byte_token(self, byte: int) -> int | None:
        """The token that stands for this one byte; None where the model has none."""
        if self._bytes is None:
            pieces = ((self.piece(token), token) for token in range(self.vocabulary))
            self._bytes = {piece[0]: token for piece, token in pieces if len(piece) == 1}
        return self._bytes.get(byte)

    def ends(self) -> frozenset[int]:
        """All tokens that end an answer."""
        return self._ends

    def check(self, constraint: Constraint) -> None:
        """Raise WrongGrammar where llama.cpp does not take the grammar."""
        llama_cpp.llama_sampler_free(self.grammar(constraint.grammar))

    # --- computing

    def decode(self, parts: list[Part]) -> None:
        """Compute the parts in one batch; see `generation.Engine.decode`."""
        assert self._batch is not None  # noqa: S101  true once loaded, for the type checker
        self._rows = self._batch.fill(parts)
        code = llama_cpp.llama_decode(self._context, self._batch.struct)
        if code != 0:
            raise GenerationFailed(f"llama.cpp could not compute the next tokens (code {code})")

    def logits(self, row: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        """The logits of a row, shape (vocabulary,); valid until the next decode."""
        pointer = llama_cpp.llama_get_logits_ith(self._context, self._rows[row])
        if not pointer:
            raise GenerationFailed("llama.cpp gave no probabilities for the next token")
        return np.ctypeslib.as_array(pointer, (self.vocabulary,))

    def sample(self, chain: Any, row: int) -> int:
        """Draw from a row by a chain of llama.cpp's samplers, which learns of the token."""
        return llama_cpp.llama_sampler_sample(chain, self._context, self._rows[row])

    def logprob(self, row: int, token: int, top: int) -> Logprob:
        """How likely a token was; see `generation.Engine.logprob`."""
        logits = self.logits(row).astype(np.float64)
        highest = logits.max()
        logits -= highest + np.log(np.exp(logits - highest).sum())
        likeliest = np.argpartition(logits, -top)[-top:] if top else np.empty(0, dtype=np.int64)
        likeliest = likeliest[np.argsort(-logits[likeliest], kind="stable")]
        return Logprob(token, float(logits[token]), [(int(one), float(logits[one])) for one in likeliest])

    def keep(self, sequence: int, count: int) -> bool:
        """Keep the first `count` tokens of a sequence; see `generation.Engine.keep`."""
        if (
            count
            and llama_cpp.llama_memory_seq_rm(self._memory, sequence, count, -1)
            and self._reaches(sequence, count)
        ):
            return True
        # Recurrent models hold no single tokens: all or nothing.
        llama_cpp.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        return count == 0

    def _reaches(self, sequence: int, count: int) -> bool:
        # A sliding window drops what has left it: what the next token looks back at must still be there.
        if not self._window:
            return True
        first = llama_cpp.llama_memory_seq_pos_min(self._memory, sequence)
        return 0 <= first <= max(0, count - self._window)

    def copy(self, source: int, target: int, count: int) -> bool:
        """Let `target` hold what `source` holds; see `generation.Engine.copy`."""
        # Only whole sequences: a part between two of them ends the process (GGML_ASSERT in llama-kv-cache.cpp).
        llama_cpp.llama_memory_seq_rm(self._memory, target, -1, -1)
        llama_cpp.llama_memory_seq_cp(self._memory, source, target, -1, -1)
        return self.keep(target, count)

    def embed(self, inputs: list[list[int]]) -> list[list[float]]:
        """One vector for each input; see `generation.Engine.embed`."""
        if self._memory:
            llama_cpp.llama_memory_clear(self._memory, True)
        self.decode([Part(number, tokens, 0, "all") for number, tokens in enumerate(inputs)])
        vectors: list[list[float]] = []
        for number in range(len(inputs)):
            pointer = llama_cpp.llama_get_embeddings_seq(self._context, number)
            if not pointer:
                raise GenerationFailed("llama.cpp gave no vector")
            vector = np.ctypeslib.as_array(pointer, (self._embedding_length,)).astype(np.float64)
            length = float(np.linalg.norm(vector))
            vectors.append([float(value) for value in (vector / length if length else vector)])
        return vectors

    # --- drawing

    def sampler(self, sampling: Sampling) -> sampler.LlamaSampler:
        """What draws a request's tokens; see `generation.Engine.sampler`."""
        return sampler.LlamaSampler(self, sampling)

    def grammar(self, text: str) -> Any:
        """A sampler of llama.cpp's for a GBNF grammar. Raises WrongGrammar."""
        self.grammar_steps.allow(sampler.MOST_STEPS)
        made = llama_cpp.llama_sampler_init_grammar(self.vocab, text.encode(), b"root")
        if not made:
            raise WrongGrammar("llama.cpp cannot parse it, or a rule of it begins with itself")
        if self.grammar_steps.spent():
            llama_cpp.llama_sampler_free(made)
            raise WrongGrammar(sampler.TOO_AMBIGUOUS)
        return made

    # --- loading

    def _load_model(self, devices: list[backends.Device], progress: Callable[[float], bool]) -> Any:
        aborted = False

        def on_progress(part: float, _: object) -> bool:
            nonlocal aborted
            aborted = not progress(part)
            return not aborted

        callback = llama_cpp.llama_progress_callback(on_progress)
        # Ends with a null; empty, it keeps a CPU worker's context off the GPU as well.
        chosen = (ctypes.c_void_p * (len(devices) + 1))(*(device.handle for device in devices), None)
        parameters = llama_cpp.llama_model_default_params()
        parameters.devices = ctypes.cast(chosen, ctypes.c_void_p)
        parameters.n_gpu_layers = self._gpu_layers()
        parameters.split_mode = _SPLIT_MODES[self._spec.split_mode]
        parameters.main_gpu = 0
        if self._spec.tensor_split:
            # llama.cpp reads as many numbers as it could have devices.
            parameters.tensor_split = (ctypes.c_float * llama_cpp.llama_max_devices())(*self._spec.tensor_split)
        parameters.progress_callback = callback
        model = llama_cpp.llama_model_load_from_file(self._spec.model_path.encode(), parameters)
        if model:
            return model
        if aborted:
            raise LoadAborted
        raise self._log.why_not_loaded()

    def _gpu_layers(self) -> int:
        if self._spec.backend == "cpu":
            return 0
        return -1 if self._spec.gpu_layers is None else self._spec.gpu_layers

    def _vector_length(self) -> int:
        """The length of the model's vectors, 0 where it generates text. Raises CannotServe where it does neither."""
        architecture = self._meta("general.architecture")
        pooling = int(self._meta(f"{architecture}.pooling_type") or 0)
        ranks, only_reads = pooling == _RANKED, llama_cpp.llama_model_has_encoder(self._model)
        if ranks or only_reads or not llama_cpp.llama_model_has_decoder(self._model):
            raise CannotServe(
                "model_unreadable",
                "the model ranks or translates texts: it can neither complete text nor make vectors of it",
                "choose a model that generates text, or one for embeddings",
            )
        if pooling in _POOLED or self._meta(f"{architecture}.attention.causal") == "false":
            return llama_cpp.llama_model_n_embd_out(self._model)
        return 0

    def _meta(self, key: str) -> str:
        buffer = ctypes.create_string_buffer(256)
        length = llama_cpp.llama_model_meta_val_str(self._model, key.encode(), buffer, len(buffer))
        return buffer.value.decode(errors="replace") if length >= 0 else ""

    def _make_context(self, tokens: int) -> Any:
        # A text's vector needs all of its tokens in one batch.
        most = BATCH_TOKENS, UBATCH_TOKENS
        batch, at_once = (tokens if self._embedding_length else min(one, tokens * self._spec.slots) for one in most)
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = tokens * self._spec.slots
        parameters.n_batch, parameters.n_ubatch = batch, at_once
        parameters.swa_full = KEEPS_WHOLE_WINDOWS
        parameters.n_seq_max = self._spec.slots
        # Each slot has memory of its own: what one holds costs the others no time. Texts of different lengths whose
        # vectors are made together need one for all, or llama.cpp cuts the batch up and pools what is left of each.
        parameters.kv_unified = bool(self._embedding_length)
        parameters.n_threads = parameters.n_threads_batch = self._threads
        parameters.embeddings = bool(self._embedding_length)
        parameters.offload_kqv = parameters.op_offload = self._spec.backend == "cuda"
        parameters.no_perf = True
        context = llama_cpp.llama_init_from_model(self._model, parameters)
        if not context:
            raise no_memory()
        self._batch = _Batch(batch)
        keep_threads(backends.library(), library(), context, self._threads)
        return context

    def _warm_up(self, context: int, trained: int) -> None:
        # Touches every weight once, so that the first request does not pay for it.
        first = [Part(0, [max(llama_cpp.llama_vocab_bos(self.vocab), 0)], 0, "last")]
        llama_cpp.llama_set_warmup(self._context, True)
        loaded = self._try_out(first)
        # Of a mixture of experts it wants all for each token, which no request does.
        llama_cpp.llama_set_warmup(self._context, False)
        taken = self._try_out(first)
        vectors = bool(self._embedding_length)
        # Models with learned positions have none beyond those that they were trained with.
        longest = min(context, trained or context)
        most = min(BATCH_TOKENS, longest if vectors else longest * self._spec.slots)
        count = warm_up.batch_tokens(most, taken)
        log.info("trying out the model with %d tokens at once", count)
        slots = warm_up.batch_tokens(self._spec.slots, taken)
        steps = warm_up.steps(count, vocabulary=self.vocabulary, longest=longest, slots=slots, vectors=vectors)
        full = max(self._try_out(parts) for parts in steps)
        # A request for vectors may bring all of a context in one step.
        self._longest_step = max(loaded, full * (longest if vectors else most) / count)
        if self._memory:
            llama_cpp.llama_memory_clear(self._memory, True)

    def _try_out(self, parts: list[Part]) -> float:
        """Compute the parts, let their sequences hold nothing, and return the seconds taken. Raises CannotServe."""
        began = time.monotonic()
        try:
            self.decode(parts)
        except GenerationFailed:
            raise CannotServe(
                "model_unreadable",
                "llama.cpp loaded the model but cannot compute with it; its reason is in the worker's log",
                "try another quantisation of the model, or a newer llama-orch",
            ) from None
        # A GPU may still be at it.
        llama_cpp.llama_synchronize(self._context)
        taken = time.monotonic() - began
        for sequence in {part.sequence for part in parts}:
            self.keep(sequence, 0)
        return taken

    def _text_of(self, token: int) -> str:
        if token < 0:
            return ""
        text = llama_cpp.llama_vocab_get_text(self.vocab, token)
        return text.decode(errors="replace") if text else ""


class _Batch:
    """A `llama_batch` of up to `size` tokens over arrays that are filled again at each step."""

    def __init__(self, size: int) -> None:
        self._tokens, self._positions, self._counts, self._sequences = np.ones((4, size), dtype=np.int32)
        self._outputs = np.zeros(size, dtype=np.int8)
        # Where each token finds its list of sequences: always one, at its own place.
        first = self._sequences.ctypes.data
        self._places = np.arange(first, first + 4 * size, 4, dtype=np.uint64)
        kinds = dict(llama_cpp.llama_batch._fields_)
        self.struct = llama_cpp.llama_batch()
        for name, array in (
            ("token", self._tokens), ("pos", self._positions), ("n_seq_id", self._counts), ("seq_id", self._places),
            ("logits", self._outputs),
        ):  # fmt: skip
            setattr(self.struct, name, ctypes.cast(array.ctypes.data, kinds[name]))

    def fill(self, parts: list[Part]) -> list[int]:
        """Take the parts in and return the places in the batch that give logits."""
        rows: list[int] = []
        begin = 0
        for part in parts:
            end = begin + len(part.tokens)
            self._tokens[begin:end] = part.tokens
            self._positions[begin:end] = np.arange(part.position, part.position + len(part.tokens))
            self._sequences[begin:end] = part.sequence
            self._outputs[begin:end] = part.outputs == "all"
            if part.outputs == "last":
                self._outputs[end - 1] = 1
            rows.extend(range(end - part.rows, end))
            begin = end
        self.struct.n_tokens = begin
        return rows
