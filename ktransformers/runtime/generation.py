"""The PreTrainedModel a script holds: transformers' class of the family, run by the core.

`forward` evaluates lowered steps. `generate` is transformers' own up to its sampling loop, so that
settings, warnings and stopping mean what they mean there; the loop itself runs in the core where
the core's sampler has all that was asked for, and in transformers otherwise.
"""

from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache
from transformers.generation import GenerateDecoderOnlyOutput, GenerationMode
from transformers.modeling_outputs import CausalLMOutputWithPast

from ktransformers.errors import UserError
from ktransformers.runtime.cache import PagedCache
from ktransformers.runtime.core_loop import core_options
from ktransformers.runtime.restrictions import Restrictions

# What transformers does beyond choosing one token after another.
NOT_BUILT = {
    GenerationMode.BEAM_SEARCH: "beam search (num_beams)",
    GenerationMode.BEAM_SAMPLE: "beam search with sampling (num_beams)",
    GenerationMode.GROUP_BEAM_SEARCH: "group beam search (num_beam_groups)",
    GenerationMode.CONSTRAINED_BEAM_SEARCH: "constrained beam search (constraints)",
    GenerationMode.CONTRASTIVE_SEARCH: "contrastive search (penalty_alpha)",
    GenerationMode.DOLA_GENERATION: "DoLa (dola_layers)",
    GenerationMode.ASSISTED_GENERATION: "assisted decoding (assistant_model, prompt_lookup)",
}
# Tensors inside the model, which operators do not keep.
NOT_KEPT = ("output_attentions", "output_hidden_states", "output_router_logits")
# Arguments of transformers' loop that the core's loop needs nothing of.
LOOP_ARGUMENTS = {"attention_mask", "position_ids", "past_key_values", "use_cache",
                  "logits_to_keep", "token_type_ids"}  # fmt: skip


class KtGenerationMixin(Restrictions):
    """Comes before transformers' *ForCausalLM in the class `wrap_class` makes."""

    kt: Any  # runtime.loading.Runtime, set by load_model

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    @property
    def cache_lens(self) -> int:
        """Positions the cache may hold, over all sequences."""
        return self.kt.engine.cache_lens

    def describe(self) -> str:
        """One line: what was chosen."""
        return self.kt.describe()

    @torch.no_grad()
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        return_dict: bool | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast | tuple:
        """input_ids: [batch, length] -> logits float32 [batch, length or logits_to_keep, vocab].

        Padding has the logits of the token before it, zeros where there is none. A forward of one
        column after others is a generated token; anything else is a prompt (see Arithmetic). A
        batch that is too large for the cache is evaluated sequence by sequence, where no cache was
        passed in and use_cache is not set.
        """
        _check_forward(input_ids, inputs_embeds, kwargs)
        input_ids = input_ids.cpu()
        batch, length = input_ids.shape
        cache = self._paged(past_key_values)
        with self.kt.lock:
            rows = cache.new_rows(batch, length, attention_mask, position_ids)
            is_prompt = length > 1 or cache.held.shape[1] == 0
            columns = _kept_columns(logits_to_keep, length)
            wanted = np.zeros((batch, length), bool)
            wanted[:, columns] = True
            fresh = past_key_values is None and use_cache is not True
            if fresh and not self.kt.fits(cache.sequences, rows.sequence):
                logits = self._one_by_one(input_ids, rows, wanted, cache)
            else:
                logits = self._evaluate(input_ids, rows, wanted, is_prompt, cache)
        if isinstance(logits_to_keep, torch.Tensor):  # in the order asked for
            order = np.searchsorted(np.unique(columns), columns)
            logits = logits[:, torch.from_numpy(order)]
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels.cpu(), vocab_size=self.config.vocab_size)
        out = CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=cache if use_cache is not False else None
        )
        return out.to_tuple() if return_dict is False else out

    def _paged(self, cache: Cache | None) -> PagedCache:
        if isinstance(cache, PagedCache):
            if cache.engine is not self.kt.engine:
                raise UserError("past_key_values: is another model's cache")
            return cache
        if cache is not None and (not isinstance(cache, Cache) or cache.get_seq_length() > 0):
            raise UserError(
                f"past_key_values: a {type(cache).__name__} with content cannot be taken over; "
                "pass none, or what an earlier forward or generate returned"
            )
        return PagedCache(self.kt.engine)

    def _evaluate(self, input_ids, rows, wanted, is_prompt, cache) -> torch.Tensor:
        """Evaluates the rows -> logits of the wanted columns, [batch, columns, vocab]."""
        batch, length = input_ids.shape
        tokens = input_ids.reshape(-1).numpy()[rows.flat]
        valid = np.zeros(batch * length, bool)
        valid[rows.flat] = True
        own = np.where(
            valid.reshape(batch, length), np.arange(batch * length).reshape(batch, -1), -1
        )
        places = np.maximum.accumulate(own, axis=1)[wanted]  # of the last token up to each column
        needed = np.unique(places[places >= 0])
        values = self.kt.evaluate(
            tokens, rows.position, rows.sequence, is_prompt, cache.sequences,
            np.searchsorted(rows.flat, needed),
        )  # fmt: skip
        cache.append(rows, length)
        if len(needed) < len(places):
            full = np.zeros((len(places), values.shape[1]), np.float32)
            full[places >= 0] = values[np.searchsorted(needed, places[places >= 0])]
            values = full
        return torch.from_numpy(values).reshape(batch, -1, values.shape[-1])

    def _one_by_one(self, input_ids, rows, wanted, cache) -> torch.Tensor:
        """`_evaluate` of prompts that do not fit into the cache together, which keeps nothing."""
        cache.lost = (
            f"past_key_values: {len(rows.flat)} positions did not fit into the cache together and "
            f"were not kept; raise cache_lens (now {self.cache_lens}), or pass use_cache=True to "
            "be told at once"
        )
        parts = []
        for b, line in enumerate(input_ids):
            one = PagedCache(self.kt.engine)
            mask = np.zeros((1, len(line)), np.int64)
            mask[0, rows.flat[rows.sequence == b] - b * len(line)] = 1
            own = one.new_rows(1, len(line), torch.from_numpy(mask), None)
            parts.append(self._evaluate(line[None], own, wanted[b : b + 1], True, one))
        cache.sequences = []
        return torch.cat(parts)

    # ---- generate ----

    @torch.no_grad()
    def generate(self, inputs=None, generation_config=None, **kwargs):
        """As transformers' generate; what is not built is refused by name."""
        ids = inputs if inputs is not None else kwargs.get("input_ids")
        if kwargs.get("inputs_embeds") is not None:
            raise UserError("generate: inputs_embeds are not supported; pass input_ids")
        if kwargs.get("assistant_model") is not None:
            self._refuse_mode(GenerationMode.ASSISTED_GENERATION)
        if ids is not None and (not isinstance(ids, torch.Tensor) or ids.dim() != 2):
            what = list(ids.shape) if isinstance(ids, torch.Tensor) else type(ids).__name__
            raise UserError(
                f"generate: input_ids must be a tensor [batch, length], not {what}; a tokenizer "
                'makes one with return_tensors="pt"'
            )
        if ids is not None and ids.numel() == 0:
            raise UserError("generate: the prompt is empty")
        return super().generate(inputs, generation_config, **kwargs)

    def _refuse_mode(self, mode: GenerationMode) -> None:
        if mode in NOT_BUILT:
            raise UserError(f"generate: {NOT_BUILT[mode]} is not built yet")

    def _get_deprecated_gen_repo(self, generation_mode, *args, **kwargs):
        self._refuse_mode(generation_mode)  # transformers would fetch code from the hub here
        return None

    def _validate_generation_mode(self, generation_mode, *args, **kwargs):
        self._refuse_mode(generation_mode)
        return super()._validate_generation_mode(generation_mode, *args, **kwargs)

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args, **kwargs):
        """One kind of cache, whatever cache_implementation says: the pages of the core."""
        if generation_config.use_cache is not False or model_kwargs.get("past_key_values"):
            model_kwargs["past_key_values"] = self._paged(model_kwargs.get("past_key_values"))

    def _sample(
        self, input_ids, logits_processor, stopping_criteria, generation_config,
        synced_gpus=False, streamer=None, **model_kwargs,
    ):  # fmt: skip
        """transformers' decoding loop, in the core where it can be."""
        mask, positions = (model_kwargs.get(key) for key in ("attention_mask", "position_ids"))
        cache = self._paged(model_kwargs.get("past_key_values"))
        total = mask.shape[1] if mask is not None else generation_config._mask_length
        seen = cache.held.shape[1]
        new = input_ids[:, seen:] if total == input_ids.shape[1] else input_ids
        if new.shape[1] == 0:
            raise UserError("generate: past_key_values holds the whole prompt already; crop it")
        if positions is not None:
            positions = positions[:, -new.shape[1] :]
        with self.kt.lock:
            rows = cache.new_rows(len(new), new.shape[1], mask, positions)
        options = None
        if self.kt.decoder is not None and not set(model_kwargs) - LOOP_ARGUMENTS:
            options = core_options(
                input_ids, mask, logits_processor, stopping_criteria, generation_config, streamer
            )
        if options is not None and seen and options.sampling.repetition_penalty != 1:
            options = None  # the core's sampler knows only the tokens it is given
        if options is None:
            # Checked above; behind padding on the right transformers would count on wrongly.
            model_kwargs.pop("position_ids", None)
            return super()._sample(
                input_ids, logits_processor, stopping_criteria, generation_config,
                synced_gpus=synced_gpus, streamer=streamer, **model_kwargs,
            )  # fmt: skip
        pad = generation_config._pad_token_tensor
        options.prompt_chunk = self.kt.chunk_size
        with self.kt.lock:
            tokens = self._core_loop(new, rows, options, cache, streamer)
        width = max(map(len, tokens))
        out = torch.full((len(tokens), width), 0 if pad is None else int(pad), dtype=new.dtype)
        for line, generated in zip(out, tokens, strict=True):
            line[: len(generated)] = torch.tensor(generated, dtype=new.dtype)
        sequences = torch.cat([input_ids, out], dim=1)
        if not generation_config.return_dict_in_generate:
            return sequences
        return GenerateDecoderOnlyOutput(sequences=sequences, past_key_values=cache)

    def _core_loop(self, new, rows, options, cache, streamer) -> list[list[int]]:
        """Evaluates the new columns and generates; extends the cache -> tokens per sequence."""
        flat = new.reshape(-1).numpy()[rows.flat]
        prompts = [flat[rows.sequence == b].tolist() for b in range(len(new))]
        if not all(prompts):
            raise UserError(f"generate: prompt {[bool(p) for p in prompts].index(False)} is empty")
        self.kt.check_room(prompts)

        def on_token(_, token: int) -> bool:
            streamer.put(torch.tensor([token]))
            return True

        before = [sequence.length for sequence in cache.sequences]
        try:
            if options.sampling.repetition_penalty == 1:  # else it has to see the whole prompt
                self._share_prompts(prompts, cache)
            result = self.kt.decoder.generate(
                cache.sequences, prompts, options, None if streamer is None else on_token
            )
        except BaseException as error:
            for sequence, length in zip(cache.sequences, before, strict=True):
                sequence.truncate(length)
            if isinstance(error, ValueError):
                raise UserError(str(error)) from error
            raise
        self.kt.last_stats = result
        cache.append(rows, new.shape[1])
        # The last token of each sequence has not been evaluated.
        kept = np.array([len(tokens) - 1 for tokens in result.tokens])
        generated = np.arange(kept.max())[None] < kept[:, None]
        cache.held = np.concatenate([cache.held, generated], axis=1)
        if streamer is not None:
            streamer.end()
        return result.tokens

    def _share_prompts(self, prompts: list[list[int]], cache: PagedCache) -> None:
        """Evaluates a prompt that several new sequences begin with once, but for its last token,
        and forks them from it; shortens their prompts to that token."""
        firsts: dict[tuple[int, ...], int] = {}
        for b, prompt in enumerate(prompts):
            if cache.sequences[b].length or len(prompt) < 2:
                continue
            first = firsts.setdefault(tuple(prompt), b)
            if first == b:
                continue
            if len(prompts[first]) > 1:
                count = len(prompt) - 1
                self.kt.evaluate(
                    np.array(prompt[:-1], np.int32), np.arange(count, dtype=np.int32),
                    np.zeros(count, np.int32), True, [cache.sequences[first]], [],
                )  # fmt: skip
                prompts[first] = prompt[-1:]
            cache.sequences[b] = cache.sequences[first].fork()
            prompts[b] = prompt[-1:]


def wrap_class(cls: type[PreTrainedModel]) -> type:
    """The family's class with the mixin in front, under the same name."""
    return type(cls.__name__, (KtGenerationMixin, cls), {"__module__": cls.__module__})


def _check_forward(input_ids, inputs_embeds, kwargs: dict) -> None:
    if inputs_embeds is not None:
        raise UserError("forward: inputs_embeds are not supported; pass input_ids")
    if not isinstance(input_ids, torch.Tensor) or input_ids.dim() != 2 or not input_ids.numel():
        what = list(input_ids.shape) if isinstance(input_ids, torch.Tensor) else input_ids
        raise UserError(f"forward: input_ids must be a tensor [batch, length], not {what}")
    if input_ids.is_floating_point():
        raise UserError(f"forward: input_ids are {input_ids.dtype}; token ids are integers")
    for name in NOT_KEPT:
        if kwargs.get(name):
            raise UserError(f"forward: {name} is not supported: operators keep no such tensors")


def _kept_columns(logits_to_keep, length: int) -> np.ndarray:
    columns = np.arange(length)
    if isinstance(logits_to_keep, torch.Tensor):
        return columns[logits_to_keep.cpu().numpy()]
    return columns[-logits_to_keep:] if logits_to_keep else columns
