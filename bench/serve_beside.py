"""A server whose process also runs `local_chat`'s loop when told to, on the same loaded model.

So the two can take turns within seconds: on a machine whose memory's bandwidth changes by the
minute, two processes that load a model each cannot be compared. Words of the command line are those
of `ktransformers serve`. Each line on standard input, a JSON list [seed, prompt tokens, tokens to
generate], is answered on standard output with {"prompt_seconds", "tokens_per_second"}; the server
must have nothing to do meanwhile.
"""

import json
import sys
import threading


def answer_chats(model) -> None:
    from ktransformers.cli.bench_serve import chat_speed

    for line in sys.stdin:
        figures = chat_speed(model, *json.loads(line), model.kt.decoder.vocab_size)
        print(json.dumps(figures), flush=True)


def main(words: list[str]) -> int:
    from ktransformers.cli.serve_flags import check_serve
    from ktransformers.server.serve import bound, load_service, run

    request = check_serve(words)
    listener = bound(request.options["host"], request.options["port"])
    service = load_service(request)
    threading.Thread(target=answer_chats, args=(service.model,), daemon=True).start()
    return run(service, request, listener)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
