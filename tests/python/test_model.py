"""The model a script holds: forward, the cache between forwards, and what it refuses."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
from transformers import DynamicCache, PreTrainedModel

from ktransformers.errors import UserError
from tests.support import vocabulary
from tests.support.compare import compare
from tests.support.families import families
from tests.support.pairs import left_padded, load, pair, path_of

torch.set_num_threads(1)  # miniatures are too small to share

RANDOM = np.random.default_rng(7)
IDS = [int(i) for i in RANDOM.integers(3, vocabulary.SIZE, 150)]
# Grouped-query attention with routed experts, latent attention, and a dense model.
SOME = ["qwen3moe", "deepseek_v3", "llama"]


def tensor(ids) -> torch.Tensor:
    return torch.tensor([list(ids)])


def assert_same(reference: torch.Tensor, ours: torch.Tensor) -> None:
    """[..., vocab] logits equal within the fidelity limits of f32."""
    assert reference.shape == ours.shape
    vocab = reference.shape[-1]
    result = compare(reference.reshape(-1, vocab).numpy(), ours.reshape(-1, vocab).numpy())
    assert result.nmse <= 1e-9 and result.kl_mean <= 1e-8, result


def logits_of(model, **arguments) -> torch.Tensor:
    with torch.no_grad():
        return model(**arguments).logits


@pytest.fixture(scope="module", params=SOME)
def both(request):
    return pair(request.param)


def test_is_a_pretrained_model_on_the_cpu(both):
    model = both.model
    assert isinstance(model, PreTrainedModel)
    assert type(model).__name__ == type(both.reference).__name__
    assert model.device == torch.device("cpu") and model.dtype == torch.float32
    assert model.config.model_type == both.reference.config.model_type
    assert model.config.vocab_size == vocabulary.SIZE
    assert not model.training and model.can_generate()
    router_biases = [b for n, b in both.reference.named_buffers() if "correction_bias" in n]
    values = both.reference.num_parameters() + sum(b.numel() for b in router_biases)
    assert model.num_parameters() == values
    ours, theirs = (
        [m.get_input_embeddings().weight, m.get_output_embeddings().weight]
        for m in (model, both.reference)
    )
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert "core=" in repr(model) and model.describe().startswith(("avx", "scalar", "amx"))


def test_forward_of_one_prompt(both):
    ours = both.model(input_ids=tensor(IDS))
    assert_same(logits_of(both.reference, input_ids=tensor(IDS)), ours.logits)
    assert ours.past_key_values.get_seq_length() == len(IDS)
    assert ours.loss is None
    assert not ours.logits.requires_grad


@pytest.mark.parametrize("side", ["left", "right"])
def test_forward_of_a_padded_batch(both, side):
    lengths = (40, 90, 3)
    batch = left_padded([IDS[:n] for n in lengths])
    if side == "right":
        batch = {name: value.flip(1) for name, value in batch.items()}
    ours, theirs = logits_of(both.model, **batch), logits_of(both.reference, **batch)
    valid = batch["attention_mask"].bool()
    assert_same(theirs[valid], ours[valid])
    if side == "left":
        assert (ours[~valid] == 0).all()
    else:  # goes on saying what comes after the last token
        assert torch.equal(ours[2, 3:], ours[2, 2:3].expand(87, -1))
    # Without a mask padding is text like any other.
    ids = batch["input_ids"]
    assert_same(logits_of(both.reference, input_ids=ids), logits_of(both.model, input_ids=ids))


def test_logits_to_keep(both):
    ids = torch.tensor([IDS[:20], IDS[20:40]])
    full = logits_of(both.model, input_ids=ids)
    for keep, columns in ((1, [19]), (3, [17, 18, 19]), (torch.tensor([5, 0, 7]), [5, 0, 7])):
        kept = logits_of(both.model, input_ids=ids, logits_to_keep=keep)
        assert_same(full[:, columns], kept)


def test_labels_give_the_loss_of_transformers(both):
    # Padded on the right: on the left, a padding column would have to predict the first token.
    batch = {name: value.flip(1) for name, value in left_padded([IDS[:30], IDS[:12]]).items()}
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    with torch.no_grad():
        theirs, ours = (m(**batch, labels=labels).loss for m in (both.reference, both.model))
    assert abs(float(theirs) - float(ours)) < 1e-4


def test_a_tuple_where_no_dict_is_wanted(both):
    logits, cache = both.model(input_ids=tensor(IDS[:5]), return_dict=False)
    assert logits.shape == (1, 5, vocabulary.SIZE) and cache.get_seq_length() == 5


def test_use_cache_false_keeps_nothing(both):
    pool = both.model.kt.engine.kv
    before = pool.pages_in_use
    out = both.model(input_ids=tensor(IDS), use_cache=False)
    assert out.past_key_values is None and pool.pages_in_use == before


def test_going_on_from_a_cache_in_pieces_of_any_size(both):
    whole = logits_of(both.model, input_ids=tensor(IDS))
    cache, parts, start = None, [], 0
    for size in (1, 63, 2, 1, 1, 60, 22):
        piece = IDS[start : start + size]
        out = both.model(input_ids=tensor(piece), past_key_values=cache)
        cache, start = out.past_key_values, start + size
        parts.append(out.logits)
    assert_same(whole, torch.cat(parts, dim=1))


def test_going_on_with_a_padded_batch(both):
    batch = left_padded([IDS[:9], IDS[:30]])
    more = torch.tensor([IDS[9:12], IDS[30:33]])
    out = both.model(**batch)
    mask = torch.cat([batch["attention_mask"], torch.ones(2, 3, dtype=torch.long)], dim=1)
    # The second row pads once more, in the middle: columns, not positions, are what masks tell.
    mask[1, -2] = 0
    ours = both.model(input_ids=more, attention_mask=mask, past_key_values=out.past_key_values)
    first = logits_of(both.model, input_ids=tensor(IDS[:12]))[0, 9:]
    second = logits_of(both.model, input_ids=tensor([*IDS[:31], IDS[32]]))[0, 30:]
    assert_same(first, ours.logits[0])
    assert_same(second, ours.logits[1, [0, 2]])


def test_crop_and_reorder(both):
    batch = left_padded([IDS[:70], IDS[50:130]])
    cache = both.model(**batch).past_key_values
    cache.crop(75)
    assert cache.get_seq_length() == 75
    cache.crop(-1)
    assert cache.get_seq_length() == 74
    cache.reorder_cache(torch.tensor([1, 0]))
    mask = torch.ones(2, 76, dtype=torch.long)
    mask[1, :10] = 0
    more = torch.tensor([IDS[:2], IDS[2:4]])
    ours = both.model(input_ids=more, attention_mask=mask, past_key_values=cache).logits
    first = logits_of(both.model, input_ids=tensor(IDS[50:124] + IDS[:2]))[0, -2:]
    second = logits_of(both.model, input_ids=tensor(IDS[:64] + IDS[2:4]))[0, -2:]
    assert_same(torch.stack([first, second]), ours)


def test_sequences_of_a_reordered_cache_share_pages_until_they_differ():
    model = pair("llama").model
    pool = model.kt.engine.kv
    cache = model(input_ids=tensor(IDS[:100])).past_key_values
    used = pool.pages_in_use
    cache.batch_repeat_interleave(3)
    assert pool.pages_in_use == used and len(cache.sequences) == 3
    model(input_ids=torch.tensor([[5], [6], [7]]), past_key_values=cache)
    assert pool.pages_in_use == used + 2  # one of the three goes on in the page they shared
    branch = copy.deepcopy(cache)
    branch.crop(10)
    assert cache.get_seq_length() == 101
    del branch, cache
    assert pool.pages_in_use == used - 2


def test_position_ids_may_be_shifted_but_not_scattered(both):
    batch = left_padded([IDS[:20], IDS[:25]])
    plain = logits_of(both.model, **batch)
    columns = torch.arange(25).expand(2, -1)
    for ids in (columns, columns + 3, batch["attention_mask"].cumsum(1) - 1):
        assert_same(plain, logits_of(both.model, **batch, position_ids=ids))
    with pytest.raises(UserError, match="position_ids: must count up by one"):
        both.model(**batch, position_ids=columns * 2)
    cache = both.model(**batch, position_ids=columns).past_key_values
    for position, good in ((25, True), (20, False)):
        arguments = {
            "input_ids": torch.tensor([[4], [5]]),
            "position_ids": torch.full((2, 1), position),
            "past_key_values": copy.deepcopy(cache),
        }
        if good:
            both.model(**arguments)
        else:
            with pytest.raises(UserError, match="position_ids"):
                both.model(**arguments)


def test_a_batch_larger_than_the_cache_is_scored_one_by_one():
    model = load(path_of("qwen3moe"), cache_lens=128)
    ids = torch.tensor([IDS[:70], IDS[20:90], IDS[40:110]])
    out = model(input_ids=ids)
    assert_same(logits_of(pair("qwen3moe").model, input_ids=ids), out.logits)
    assert model.kt.engine.kv.pages_in_use == 0
    with pytest.raises(UserError, match="did not fit into the cache together"):
        model(input_ids=torch.tensor([[1], [2], [3]]), past_key_values=out.past_key_values)
    with pytest.raises(UserError, match="the cache is full.*cache_lens"):
        model(input_ids=ids, use_cache=True)
    with pytest.raises(UserError, match="the cache is full.*cache_lens"):
        model(input_ids=tensor(IDS[:129]))
    assert model.kt.engine.kv.pages_in_use == 0
    # Steps in small chunks give what one large step gives.
    model.kt.chunk_size = 7
    assert_same(out.logits, logits_of(model, input_ids=ids))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "input_ids must be a tensor"),
        ({"input_ids": [1, 2]}, "input_ids must be a tensor"),
        ({"input_ids": torch.tensor([1, 2])}, r"input_ids must be a tensor \[batch, length\]"),
        ({"input_ids": torch.zeros(1, 2)}, "token ids are integers"),
        ({"input_ids": tensor([1, 99999])}, "token id 99999 is outside the vocabulary"),
        ({"input_ids": tensor([1, -1])}, "token id -1 is outside the vocabulary"),
        ({"inputs_embeds": torch.zeros(1, 2, 128)}, "inputs_embeds are not supported"),
        ({"input_ids": tensor([1]), "output_attentions": True}, "output_attentions is not"),
        ({"input_ids": tensor([1]), "output_hidden_states": True}, "output_hidden_states is not"),
        ({"input_ids": tensor([1, 2]), "attention_mask": torch.ones(1, 5)}, r"\[1, 2\] is needed"),
        (
            {"input_ids": tensor([1, 2]), "attention_mask": torch.ones(1, 1, 2, 2)},
            r"only \[batch, columns\] masks",
        ),
        ({"input_ids": tensor([1, 2]), "position_ids": tensor([0])}, "one per token is needed"),
    ],
)
@pytest.mark.parametrize("lowered", [True, False])
def test_wrong_arguments_are_refused_in_one_line(arguments, message, lowered):
    model = pair("qwen3moe").model if lowered else load(path_of("qwen3moe"), lowered=False)
    with pytest.raises(UserError, match=message) as caught:
        model(**arguments)
    assert "\n" not in str(caught.value)


def test_caches_of_others_are_refused():
    model, other = pair("llama").model, pair("qwen3moe").model
    ids = tensor(IDS[:8])
    foreign = DynamicCache()
    assert model(input_ids=ids, past_key_values=foreign).logits.shape[1] == 8  # empty: ignored
    pair("llama").reference(input_ids=ids, past_key_values=foreign)
    with pytest.raises(UserError, match="a DynamicCache with content cannot be taken over"):
        model(input_ids=ids, past_key_values=foreign)
    with pytest.raises(UserError, match="another model's cache"):
        model(input_ids=ids, past_key_values=other(input_ids=ids).past_key_values)
    cache = model(input_ids=ids).past_key_values
    with pytest.raises(UserError, match="holds 1 sequences, the batch has 2"):
        model(input_ids=torch.tensor([[1], [2]]), past_key_values=cache)
    with pytest.raises(UserError, match="hides column 3 of sequence 0"):
        mask = torch.ones(1, 9, dtype=torch.long)
        mask[0, 3] = 0
        model(input_ids=tensor([1]), attention_mask=mask, past_key_values=cache)
    with pytest.raises(UserError, match="cannot be pickled"):
        pickle.dumps(cache)
    with pytest.raises(UserError, match="written while the model runs"):
        cache.update(torch.zeros(1, 2, 1, 32), torch.zeros(1, 2, 1, 32), 0)


def test_habits_of_scripts_are_ignored_or_refused_with_a_reason():
    model = pair("llama").model
    for same in (model.to("cpu"), model.float(), model.eval(), model.to(torch.float32)):
        assert same is model
    for habit in (model.half, model.bfloat16, lambda: model.to(torch.float16)):
        with pytest.warns(UserWarning, match="changes nothing"):
            assert habit() is model
    refused = {
        lambda: model.cuda(): "rule file says where",
        lambda: model.to("cuda:0"): "rule file says where",
        lambda: model.train(): "only infers",
        lambda: model.save_pretrained("x"): "GGUF file",
        lambda: model.resize_token_embeddings(9): "GGUF file",
        lambda: copy.deepcopy(model): "load the file",
        lambda: pickle.dumps(model): "load the file",
    }
    for habit, message in refused.items():
        with pytest.raises(UserError, match=message):
            habit()


def test_arguments_of_from_pretrained():
    path = path_of("llama")
    for options, message in (
        ({"activations": "int4"}, "activations='int4': choose auto, exact or f32"),
        ({"cpu_infer": 0}, "at least one thread"),
        ({"cache_lens": 0}, "cache_lens=0: at least one position"),
        ({"kv_type": "q3"}, "cache type 'q3'"),
        ({"load_in_4bit": True}, "load_in_4bit: no such argument"),
        ({"optimize_config_path": "/nowhere.yaml"}, "/nowhere.yaml"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            load(path, **options)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="nowhere.gguf"):
        load("/nowhere.gguf")


@pytest.mark.parametrize("name", families())
def test_loading_and_running_prints_no_warning(name, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = load(path_of(name))
        model.generate(tensor(IDS[:5]), attention_mask=torch.ones(1, 5), max_new_tokens=2)
    out, err = capfd.readouterr()
    assert not out and not err
