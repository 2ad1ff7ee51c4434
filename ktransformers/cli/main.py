"""The console command `ktransformers`."""


def main() -> int:
    raise SystemExit("error: no command is built yet")
