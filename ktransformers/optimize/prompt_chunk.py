"""How many rows of a prompt are evaluated at a time. Imports no torch."""

LEAST, MOST = 512, 2048
# A weight tile is unpacked once for all tokens that an expert gets: below this many the unpacking
# still shows in the time of a token.
TOKENS_PER_EXPERT = 64
SCRATCH_BYTES = 128 << 20  # for gate and up of every token's experts


def prompt_chunk(config: dict) -> int:
    """Rows that give every expert its tokens, if the router is even; LEAST where there are none.

    config: transformers' fields.
    """
    names = ("num_experts", "n_routed_experts", "num_local_experts")
    experts = next((config[name] for name in names if config.get(name)), 0)
    if not experts:
        return LEAST
    used = config["num_experts_per_tok"]
    inner = config.get("moe_intermediate_size") or config["intermediate_size"]
    wanted = -(-TOKENS_PER_EXPERT * experts // used)
    room = SCRATCH_BYTES // (used * inner * 8)
    return max(LEAST, min(wanted, room, MOST) // 256 * 256)
