"""llama.cpp, through llama-cpp-python's low-level binding: the only file that imports it."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import llama_cpp as binding

from llama_orch.contract.process import DEFAULT_CONTEXT, WorkerSpec

from . import backends, model_file
from .generation import CannotServe, FinishReason, GenerationFailed, Listener, LoadAborted, ModelInfo, Sampling
from .llama_log import LlamaLog, no_memory

# The binding declares C types where its functions take and give Python's own.
llama_cpp: Any = binding

# Tokens of a prompt that are computed at once: nobody's leaving is noticed in between.
BATCH_TOKENS = 512


class LlamaEngine:
    """One model with one context of one sequence. See `generation.Engine` for what the methods promise."""

    def __init__(self, spec: WorkerSpec, threads: int) -> None:
        self._spec = spec
        self._threads = threads
        self._log = LlamaLog()
        # ctypes keeps no reference to a callback: without this one it is freed while llama.cpp still calls it.
        self._log_callback = llama_cpp.llama_log_callback(lambda level, text, _: self._log.receive(level, text))
        self._model: Any = None
        self._vocab: Any = None
        self._context: Any = None
        self._info: ModelInfo | None = None

    def load(self, progress: Callable[[float], bool]) -> ModelInfo:
        """Load the model onto its device and warm it up; see `generation.Engine.load`."""
        model_file.check(Path(self._spec.model_path))
        llama_cpp.llama_log_set(self._log_callback, ctypes.c_void_p(0))
        backends.show_only(self._spec.backend, self._spec.device)
        devices = backends.choose(backends.load(), self._spec.backend, self._spec.device)
        llama_cpp.llama_backend_init()
        self._model = self._load_model(devices, progress)
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        trained = llama_cpp.llama_model_n_ctx_train(self._model)
        context = self._spec.ctx_per_slot or min(trained or DEFAULT_CONTEXT, DEFAULT_CONTEXT)
        self._refuse_what_cannot_generate()
        self._context = self._make_context(context)
        self._warm_up()
        template = llama_cpp.llama_model_chat_template(self._model, None)
        self._info = ModelInfo(
            context=context,
            trained_context=trained,
            chat_template=template.decode(errors="replace") if template else None,
            bos_text=self._text_of(llama_cpp.llama_vocab_bos(self._vocab)),
            eos_text=self._text_of(llama_cpp.llama_vocab_eos(self._vocab)),
        )
        return self._info

    def tokenize(self, text: str, *, rendered: bool) -> list[int]:
        """Tokens of `text`, with the special ones where the model wants them."""
        raw = text.encode(errors="replace")
        size = len(raw) + 8
        while True:
            tokens = (llama_cpp.llama_token * size)()
            count = llama_cpp.llama_tokenize(self._vocab, raw, len(raw), tokens, size, not rendered, True)
            if count >= 0:
                break
            size = -count
        found = list(tokens[:count])
        # A template may or may not write the first token itself; twice would change the answer.
        if rendered and llama_cpp.llama_vocab_get_add_bos(self._vocab):
            begin = llama_cpp.llama_vocab_bos(self._vocab)
            if begin >= 0 and found[:1] != [begin]:
                found.insert(0, begin)
        return found

    def generate(self, prompt: list[int], limit: int, sampling: Sampling, listener: Listener) -> FinishReason:
        """Generate up to `limit` tokens; see `generation.Engine.generate`."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        with self._sampler(sampling) as sampler:
            for start in range(0, len(prompt), BATCH_TOKENS):
                if not listener.wanted():
                    return "stop"
                self._decode(prompt[start : start + BATCH_TOKENS])
            for produced in range(1, limit + 1):
                token = llama_cpp.llama_sampler_sample(sampler, self._context, -1)
                if llama_cpp.llama_vocab_is_eog(self._vocab, token):
                    return "stop"
                if not listener.token(self._piece(token)):
                    return "stop"
                if produced < limit:
                    self._decode([token])
        return "length"

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
        parameters.split_mode = llama_cpp.LLAMA_SPLIT_MODE_NONE
        parameters.main_gpu = 0
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

    def _make_context(self, tokens: int) -> Any:
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = tokens
        parameters.n_batch = parameters.n_ubatch = min(BATCH_TOKENS, tokens)
        parameters.n_seq_max = 1
        parameters.n_threads = parameters.n_threads_batch = self._threads
        parameters.offload_kqv = parameters.op_offload = self._spec.backend == "cuda"
        parameters.no_perf = True
        context = llama_cpp.llama_init_from_model(self._model, parameters)
        if not context:
            raise no_memory()
        return context

    def _refuse_what_cannot_generate(self) -> None:
        if llama_cpp.llama_model_has_encoder(self._model) or not llama_cpp.llama_model_has_decoder(self._model):
            raise CannotServe(
                "model_unreadable",
                "the model is not a decoder: it makes embeddings or translates, and cannot complete text",
                "choose a model that generates text",
            )

    def _warm_up(self) -> None:
        # Touches every weight once, so that the first request does not pay for it.
        first = max(llama_cpp.llama_vocab_bos(self._vocab), 0)
        llama_cpp.llama_set_warmup(self._context, True)
        try:
            self._decode([first])
        except GenerationFailed:
            raise CannotServe(
                "model_unreadable",
                "llama.cpp loaded the model but cannot compute with it; its reason is in the worker's log",
                "try another quantisation of the model, or a newer llama-orch",
            ) from None
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        llama_cpp.llama_set_warmup(self._context, False)

    def _decode(self, tokens: list[int]) -> None:
        array = (llama_cpp.llama_token * len(tokens))(*tokens)
        batch = llama_cpp.llama_batch_get_one(array, len(tokens))
        code = llama_cpp.llama_decode(self._context, batch)
        if code != 0:
            raise GenerationFailed(f"llama.cpp could not compute the next token (code {code})")

    @contextlib.contextmanager
    def _sampler(self, sampling: Sampling) -> Iterator[Any]:
        chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        try:
            for part in self._sampler_parts(sampling):
                llama_cpp.llama_sampler_chain_add(chain, part)
            yield chain
        finally:
            # Frees its parts as well.
            llama_cpp.llama_sampler_free(chain)

    def _sampler_parts(self, sampling: Sampling) -> Iterator[Any]:
        words = llama_cpp.llama_vocab_n_tokens(self._vocab)
        if sampling.presence_penalty or sampling.frequency_penalty:
            reach = self._info.context if self._info else DEFAULT_CONTEXT
            yield llama_cpp.llama_sampler_init_penalties(
                words, reach, 1.0, sampling.frequency_penalty, sampling.presence_penalty
            )
        if sampling.temperature == 0:
            yield llama_cpp.llama_sampler_init_greedy()
            return
        if sampling.top_k:
            yield llama_cpp.llama_sampler_init_top_k(sampling.top_k)
        if sampling.top_p < 1:
            yield llama_cpp.llama_sampler_init_top_p(sampling.top_p, 1)
        if sampling.min_p:
            yield llama_cpp.llama_sampler_init_min_p(sampling.min_p, 1)
        yield llama_cpp.llama_sampler_init_temp(sampling.temperature)
        yield llama_cpp.llama_sampler_init_dist(sampling.seed)

    def _piece(self, token: int) -> bytes:
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            length = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, size, 0, False)
            if length >= 0:
                return buffer.raw[:length]
            size = -length

    def _text_of(self, token: int) -> str:
        if token < 0:
            return ""
        text = llama_cpp.llama_vocab_get_text(self._vocab, token)
        return text.decode(errors="replace") if text else ""
