"""The PreTrainedModel a script holds: transformers' class of the family, run by the core.

`forward` evaluates one lowered step; `generate` runs the core's loop where the generation config
asks only for what the core's sampler has, and transformers' own loop otherwise.
"""

from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from ktransformers import _core
from ktransformers.errors import UserError
from ktransformers.runtime.cache import PagedCache

# Generation settings the core's loop honours; another one that is set sends generate() through
# transformers' loop.
CORE_SETTINGS = {
    "max_length", "max_new_tokens", "min_length", "min_new_tokens", "do_sample", "temperature",
    "top_k", "top_p", "min_p", "repetition_penalty", "eos_token_id", "pad_token_id",
    "bos_token_id", "use_cache", "num_beams", "num_return_sequences", "transformers_version",
    "disable_compile", "cache_implementation", "return_dict_in_generate",
}  # fmt: skip
NOT_BUILT = {"num_beams": "beam search", "penalty_alpha": "contrastive search",
             "dola_layers": "DoLa", "prompt_lookup_num_tokens": "prompt lookup"}  # fmt: skip


class KtGenerationMixin:
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
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """input_ids: [batch, length] -> logits float32 [batch, length or logits_to_keep, vocab].

        Positions follow from the mask: `position_ids` other than that are not looked at. A forward
        of one column after others is a generated token; anything else is a prompt (see Arithmetic).
        """
        if input_ids is None:
            raise UserError("forward: input_ids are needed; inputs_embeds are not supported")
        for name in ("output_attentions", "output_hidden_states"):
            if kwargs.get(name):
                raise UserError(f"forward: {name} is not supported: operators keep no such tensors")
        batch, length = input_ids.shape
        cache = self._paged(past_key_values, batch)
        is_prompt = length > 1 or cache.columns_seen == 0
        engine = self.kt.engine
        marks = lambda position, prompt: _core.rounding(engine.arithmetic, position, prompt)  # noqa: E731
        rows = cache.rows_for(attention_mask, length, is_prompt, marks)
        keep = _kept_columns(logits_to_keep, length)
        if self.kt.decoder is not None:
            logits = self._lowered(input_ids, rows, keep, is_prompt)
            cache.finish(length)
        else:
            logits = self._by_module(input_ids, attention_mask, cache, rows, keep)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size)
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=cache if use_cache is not False else None
        )

    def _paged(self, cache: Cache | None, batch: int) -> PagedCache:
        if isinstance(cache, PagedCache):
            if len(cache.sequences) != batch:
                raise UserError(f"cache of {len(cache.sequences)} sequences, batch of {batch}")
            return cache
        if cache is not None and cache.get_seq_length() > 0:
            raise UserError(
                f"a {type(cache).__name__} with content cannot be taken over; pass none, or the "
                "cache an earlier forward returned"
            )
        return PagedCache(self.kt.engine, batch)

    def _lowered(self, input_ids, rows, keep, is_prompt) -> torch.Tensor:
        batch, length = input_ids.shape
        wanted = torch.zeros(batch, length, dtype=torch.bool)
        wanted[:, keep] = True
        row_of = {int(row): i for i, row in enumerate(rows.valid)}
        flat = [int(i) for i in torch.nonzero(wanted.reshape(-1)).reshape(-1) if int(i) in row_of]
        tokens = input_ids.reshape(-1)[rows.valid].to(torch.int32).numpy()
        try:
            values, _ = self.kt.decoder.step(
                tokens, rows.position, rows.sequence, [int(is_prompt)] * len(tokens),
                rows.sequences, [row_of[i] for i in flat],
            )  # fmt: skip
        except ValueError as error:
            raise UserError(str(error)) from error
        values = torch.from_numpy(values)
        if len(flat) == int(wanted.sum()):
            return values.reshape(batch, -1, values.shape[-1])
        logits = torch.zeros(batch * length, values.shape[-1])  # padding rows stay zero
        logits[flat] = values
        return logits.reshape(batch, length, -1)[:, keep]

    def _by_module(self, input_ids, attention_mask, cache, rows, keep) -> torch.Tensor:
        engine = self.kt.engine
        length = input_ids.shape[1]
        before = [sequence.length for sequence in cache.sequences]
        try:
            cache.extend()
            engine.rows = rows
            position_ids = torch.zeros(input_ids.numel(), dtype=torch.long)
            position_ids[rows.valid] = torch.from_numpy(rows.position).long()
            hidden = self.model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids.reshape(input_ids.shape),
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
            logits = self.lm_head(hidden[:, keep])
        except ValueError as error:
            for sequence, length in zip(cache.sequences, before, strict=True):
                sequence.truncate(length)
            raise UserError(str(error)) from error
        finally:
            engine.rows = None
        cache.finish(length)
        return logits.float()

    @torch.no_grad()
    def generate(
        self, inputs=None, generation_config=None, logits_processor=None, stopping_criteria=None,
        streamer=None, **kwargs,
    ):  # fmt: skip
        """As transformers' generate. Beam search and assisted decoding are refused by name."""
        if inputs is None:
            inputs = kwargs.pop("input_ids", None)
        if inputs is None:
            raise UserError("generate: input_ids are needed")
        if inputs.dim() != 2 or inputs.shape[1] == 0:
            raise UserError(f"generate: input_ids of shape {list(inputs.shape)}: [batch, length]")
        if kwargs.get("assistant_model") is not None:
            raise UserError(
                "generate: assisted decoding is not built yet; leave assistant_model out"
            )
        attention_mask = kwargs.pop("attention_mask", None)
        config, rest = _merged_config(self, generation_config, kwargs)
        for name, what in NOT_BUILT.items():
            value = getattr(config, name, None)
            if value and not (name == "num_beams" and value == 1):
                raise UserError(f"generate: {what} ({name}={value}) is not built yet")
        past = rest.pop("past_key_values", None)
        simple = not (logits_processor or stopping_criteria or rest or past is not None)
        if self.kt.decoder is not None and simple and _core_can(config):
            return self._core_generate(inputs, attention_mask, config, streamer)
        if attention_mask is None:
            attention_mask = torch.ones_like(inputs)
        # transformers expands the inputs for num_return_sequences itself.
        count = inputs.shape[0] * (config.num_return_sequences or 1)
        config.disable_compile = True
        return super().generate(
            inputs, generation_config=config, logits_processor=logits_processor,
            stopping_criteria=stopping_criteria, streamer=streamer, attention_mask=attention_mask,
            past_key_values=past if past is not None else PagedCache(self.kt.engine, count), **rest,
        )  # fmt: skip

    def _core_generate(self, inputs, attention_mask, config, streamer) -> torch.Tensor:
        repeat = config.num_return_sequences or 1
        inputs = inputs.repeat_interleave(repeat, 0)
        mask = torch.ones_like(inputs) if attention_mask is None else attention_mask
        mask = mask.repeat_interleave(repeat, 0) if len(mask) != len(inputs) else mask
        prompts = [row[m.bool()].tolist() for row, m in zip(inputs, mask, strict=True)]
        for index, prompt in enumerate(prompts):
            if not prompt:
                raise UserError(f"generate: prompt {index} is empty")
        options, room = core_options(config, inputs.shape[1])
        longest = max(map(len, prompts))
        lens = self.kt.engine.cache_lens
        if longest > lens:
            raise UserError(
                f"the prompt has {longest} tokens, the cache holds {lens}; raise cache_lens"
            )
        if streamer is not None:
            if len(prompts) > 1:
                raise UserError("generate: a streamer takes one sequence, the batch has more")
            streamer.put(inputs.cpu())
        on_token = None
        if streamer is not None:

            def on_token(sequence: int, token: int) -> bool:
                streamer.put(torch.tensor([token]))
                return True

        sequences = [self.kt.engine.kv.make_sequence() for _ in prompts]
        if room > 0:
            try:
                result = self.kt.decoder.generate(sequences, prompts, options, on_token)
            except ValueError as error:
                raise UserError(str(error)) from error
            self.kt.last_stats = result
            new = result.tokens
        else:
            new = [[] for _ in prompts]
        if streamer is not None:
            streamer.end()
        width = max(map(len, new))
        pad = config.pad_token_id
        if pad is None:
            pad = options.stop_ids[0] if options.stop_ids else 0
        out = torch.full((len(new), width), pad, dtype=inputs.dtype)
        for row, tokens in zip(out, new, strict=True):
            row[: len(tokens)] = torch.tensor(tokens, dtype=inputs.dtype)
        return torch.cat([inputs, out], dim=1)


def wrap_class(cls: type[PreTrainedModel]) -> type:
    """The family's class with the mixin in front, under the same name."""
    return type(cls.__name__, (KtGenerationMixin, cls), {"__module__": cls.__module__})


def core_options(config, prompt_columns: int) -> tuple[_core.GenerateOptions, int]:
    """(core options, new tokens allowed) of a transformers GenerationConfig."""
    sampling = _core.SamplingOptions()
    sampling.greedy = not config.do_sample
    sampling.repetition_penalty = _or(config.repetition_penalty, 1.0)
    if config.do_sample:
        sampling.temperature = _or(config.temperature, 1.0)
        sampling.top_k = _or(config.top_k, 0)
        sampling.top_p = _or(config.top_p, 1.0)
        sampling.min_p = _or(config.min_p, 0.0)
        # Drawn from torch's generator, so that torch.manual_seed makes a run repeatable.
        sampling.seed = int(torch.randint(1 << 62, (1,)))
    options = _core.GenerateOptions()
    options.sampling = sampling
    room = config.max_new_tokens
    if room is None:
        room = _or(config.max_length, 20) - prompt_columns
    options.max_new_tokens = max(int(room), 0)
    least = config.min_new_tokens
    if least is None:
        least = _or(config.min_length, 0) - prompt_columns
    options.min_new_tokens = max(int(least), 0)
    eos = config.eos_token_id
    options.stop_ids = (
        [] if eos is None else [int(i) for i in (eos if isinstance(eos, list) else [eos])]
    )
    return options, options.max_new_tokens


def _or(value, default):
    return default if value is None else value


def _kept_columns(logits_to_keep, length: int):
    if isinstance(logits_to_keep, torch.Tensor):
        return logits_to_keep.tolist()
    return list(range(length))[-logits_to_keep:] if logits_to_keep else list(range(length))


def _merged_config(model, generation_config, kwargs):
    """(generation config with the call's settings in it, arguments that are no settings)."""
    import copy

    config = copy.deepcopy(generation_config or model.generation_config)
    for key, value in model.generation_config.to_dict().items():
        if getattr(config, key, None) is None:
            setattr(config, key, value)
    rest = {}
    for key, value in kwargs.items():
        if value is None:
            continue
        if hasattr(config, key):
            setattr(config, key, value)
        else:
            rest[key] = value
    if "max_new_tokens" not in kwargs and "max_length" in kwargs:
        config.max_new_tokens = None
    return config, rest


def _core_can(config) -> bool:
    """Whether every setting that differs from transformers' default is one the core has."""
    defaults = type(config)().to_dict()
    changed = {k for k, v in config.to_dict().items() if v is not None and defaults.get(k) != v}
    ignored = {k for k in changed if k.startswith("_") or not getattr(config, k, None)}
    if getattr(config, "return_dict_in_generate", False):
        return False
    return not (changed - ignored - CORE_SETTINGS)
