"""How many rows a step has on a card: what loading asks for, and planning counts on. No torch."""

# Of a step in which experts come to the card: each such step brings all of them once, so it has as
# many rows of a prompt as there is memory for. Attention and dense parts, and every other step,
# take SLICE rows at a time.
MOST_ROWS, SLICE, MOST_SEQUENCES = 8192, 512, 64
