"""What scripts do with a model, on the real chat model: chats, pipelines, evaluation."""

import pytest
import torch
import transformers
from transformers import StoppingCriteria, StoppingCriteriaList, TextStreamer, pipeline

from ktransformers import AutoModelForCausalLM, AutoTokenizer
from tests.support.smollm2 import dense_path

torch.set_num_threads(1)

JAPAN = [{"role": "user", "content": "What is the capital of Japan?"}]
ANSWER = "The capital of Japan is Tokyo."


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(dense_path())


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(dense_path())


def test_the_readme_script(model, tokenizer, capsys):
    text = tokenizer.apply_chat_template(JAPAN, tokenize=False, add_generation_prompt=True)
    inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    out = model.generate(**inputs, max_new_tokens=64, streamer=streamer)
    assert tokenizer.decode(out[0, inputs.input_ids.shape[1] :], skip_special_tokens=True) == ANSWER
    assert capsys.readouterr().out.strip() == ANSWER
    stats = model.kt.last_stats
    assert stats.prompt_tokens == inputs.input_ids.shape[1] and stats.eval_tokens > 5


def test_a_text_generation_pipeline(model, tokenizer, capfd):
    pipe = pipeline("text-generation", model=model, tokenizer=tokenizer)
    assert pipe.model is model and pipe.device.type == "cpu"
    chat = pipe(JAPAN, max_new_tokens=32, do_sample=False)
    assert chat[0]["generated_text"][-1] == {"role": "assistant", "content": ANSWER}
    prompts = ["The capital of Japan is", "Two and two is"]
    single = [
        pipe(one, max_new_tokens=4, do_sample=False, return_full_text=False)[0] for one in prompts
    ]
    batch = pipe(prompts, batch_size=2, max_new_tokens=4, do_sample=False, return_full_text=False)
    assert [one[0] for one in batch] == single
    assert "Tokyo" in single[0]["generated_text"]
    torch.manual_seed(0)
    several = pipe(prompts[0], max_new_tokens=8, do_sample=True, num_return_sequences=3)
    assert len(several) == 3
    assert (
        pipeline("text-generation", model=model, tokenizer=tokenizer, device="cpu").model is model
    )
    assert "warning" not in capfd.readouterr().err.lower()


def test_a_pipeline_leaves_the_model_where_it_is_on_a_machine_with_a_gpu(tokenizer, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    model = AutoModelForCausalLM.from_pretrained(dense_path())
    monkeypatch.setattr(transformers.pipelines.base, "is_torch_cuda_available", lambda: True)
    pipe = pipeline("text-generation", model=model, tokenizer=tokenizer)
    assert pipe.device.type == "cpu"
    text = pipe("The capital of Japan is", max_new_tokens=2, do_sample=False)[0]["generated_text"]
    assert text.startswith("The capital of Japan is Tokyo")


class Until(StoppingCriteria):
    """As evaluation harnesses stop: each row where a text has come, all rows when all have."""

    def __init__(self, tokenizer, text: str, columns: int, rows: int):
        self.tokenizer, self.text, self.columns = tokenizer, text, columns
        self.done = [False] * rows

    def __call__(self, input_ids, scores, **kwargs) -> bool:
        for row, ids in enumerate(input_ids):
            new = self.tokenizer.decode(ids[self.columns :])
            self.done[row] = self.done[row] or self.text in new
        return all(self.done)


def test_what_an_evaluation_harness_does(model, tokenizer):
    """The calls of lm-eval's Hugging Face adapter; check_lm_eval.sh runs the adapter itself."""
    model.eval()
    model.tie_weights()
    # Log-likelihoods: padded on the right, no mask, one forward for all.
    texts = ["The capital of Japan is Tokyo", "The capital of Japan is Toronto, as we all know"]
    ids = [tokenizer(text).input_ids for text in texts]
    width = max(map(len, ids))
    padded = torch.tensor([one + [0] * (width - len(one)) for one in ids])
    logits = model(padded).logits
    assert logits.shape == (2, width, model.config.vocab_size) and logits.device.type == "cpu"
    for row, one in enumerate(ids):
        alone = model(torch.tensor([one])).logits[0]
        assert torch.allclose(logits[row, : len(one)], alone, atol=1e-3)
    tokyo = [logits[row].log_softmax(-1)[4, ids[row][5]] for row in range(2)]
    assert tokyo[0] > tokyo[1] + 1  # " Tokyo" against " Tor"
    # Texts: padded on the left, with a stopping criterion of its own.
    tokenizer.padding_side = "left"
    prompts = ["The capital of Japan is", "The biggest ocean of all is called the"]
    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    criterion = Until(tokenizer, ".", batch.input_ids.shape[1], 2)
    out = model.generate(
        **batch, max_length=batch.input_ids.shape[1] + 24, use_cache=True, do_sample=False,
        stopping_criteria=StoppingCriteriaList([criterion]), pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    answers = tokenizer.batch_decode(out[:, batch.input_ids.shape[1] :])
    assert all(criterion.done) or out.shape[1] == batch.input_ids.shape[1] + 24
    for prompt, answer in zip(prompts, answers, strict=True):
        one = tokenizer(prompt, return_tensors="pt")
        alone = model.generate(**one, max_new_tokens=24)[0, one.input_ids.shape[1] :]
        assert len(answer) >= 3 and tokenizer.decode(alone).startswith(answer)
    assert "Tokyo" in answers[0]
