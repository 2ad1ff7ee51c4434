"""Twenty questions to SmolLM2-135M-Instruct, answered greedily with up to 32 tokens each.

An answer counts when it is token for token the one of transformers in fp32. Where the two part at
a near tie (best two logits within 1e-3) it says so, and still does not count.
"""

TITLE = """Chat: answers identical to transformers fp32 (greedy, 32 tokens); where they part, the
token number. Limits: 19 of 20 by default, all with exact."""
COLUMNS = "question default exact llama.cpp verdict".split()
TOKENS = 32
QUESTIONS = [
    "What is the capital of Japan?",
    "What is the capital of France?",
    "What is 7 times 8?",
    "Name three primary colors.",
    "Who wrote Romeo and Juliet?",
    "What is the largest planet in the solar system?",
    "How many days are there in a week?",
    "What is the chemical symbol for water?",
    "Translate 'good morning' into Spanish.",
    "Write a short poem about the sea.",
    "What is photosynthesis?",
    "Explain gravity to a child.",
    "Give me a recipe for pancakes.",
    "What is the opposite of hot?",
    "Name a famous painter and one of their works.",
    "Why is the sky blue?",
    "What does a computer's CPU do?",
    "List four seasons of the year.",
    "What is the tallest mountain on Earth?",
    "Write one sentence about a cat and a dog.",
]


def compare_chat(quick: bool):
    from bench.fidelity import Outcome
    from bench.peers import llama_cpp_greedy
    from ktransformers import AutoTokenizer
    from tests.support import ours, smollm2
    from tests.support.compare import NEAR_TIE
    from tests.support.reference import SMOLLM2, Reference

    path = smollm2.dense_path()
    questions = QUESTIONS[:: 4 if quick else 1]
    tokenizer = AutoTokenizer.from_pretrained(str(path))
    stop = SMOLLM2.config["eos_token_id"]
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
        )
        for question in questions
    ]
    reference = Reference.load(path, SMOLLM2)
    expected = [reference.greedy(ids, TOKENS, stop) for ids in prompts]
    answers = {}
    for column, activations in (("default", "auto"), ("exact", "exact")):
        model = ours.load(path, activations, lowered=True)
        answers[column] = [ours.greedy(model, ids, TOKENS, stop) for ids in prompts]
    answers["llama.cpp"] = llama_cpp_greedy(path, prompts, TOKENS)

    outcome = Outcome()
    counts = dict.fromkeys(answers, 0)
    for i, (question, (tokens, gaps)) in enumerate(zip(questions, expected, strict=True)):
        row = {"question": question, "reference": tokenizer.decode(tokens)}
        for column, theirs in answers.items():
            if theirs is None:
                row[column] = "not installed"
                continue
            part = first_difference(tokens, theirs[i])
            counts[column] += part is None
            tied = part is not None and part < len(gaps) and gaps[part] <= NEAR_TIE
            row[column] = "same" if part is None else f"{part}{' (near tie)' if tied else ''}"
            row[f"{column} answer"] = tokenizer.decode(theirs[i])
        outcome.add(row, None)
    shown = {
        column: "not installed" if answers[column] is None else f"{count} of {len(questions)}"
        for column, count in counts.items()
    }
    spare = 0 if quick else 1
    good = counts["default"] >= len(questions) - spare and counts["exact"] == len(questions)
    outcome.add({"question": "identical answers", **shown}, good)
    return outcome


def first_difference(tokens: list[int], others: list[int]) -> int | None:
    """Index of the first token in which two answers differ; None if they are the same."""
    for i, (a, b) in enumerate(zip(tokens, others, strict=False)):
        if a != b:
            return i
    return None if len(tokens) == len(others) else min(len(tokens), len(others))
