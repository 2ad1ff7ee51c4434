#!/usr/bin/env bash
# scripts/link_command.sh VENV: makes `ktransformers` a command of every shell of this user, by a link
# in ~/.local/bin (KT_BIN_DIR names another folder). Nothing that is already there is replaced, unless
# it is such a link.
set -eu
command=$(cd "$1" && pwd)/bin/ktransformers
[ -x "$command" ] || { echo "error: $command is missing; run: make install" >&2; exit 1; }
folder=${KT_BIN_DIR:-$HOME/.local/bin}
link=$folder/ktransformers
if [ -e "$link" ] && [ ! -L "$link" ]; then
  echo "note: $link is there already and no link; ktransformers is at $command"
  exit 0
fi
if ! mkdir -p "$folder" 2>/dev/null || ! ln -sfn "$command" "$link" 2>/dev/null; then
  echo "note: $folder cannot be written; ktransformers is at $command"
  exit 0
fi
case :$PATH: in
  *:$folder:*) echo "ktransformers is on PATH ($link)" ;;
  *) echo "ktransformers is at $link; put it on PATH:  export PATH=\"$folder:\$PATH\"" ;;
esac
echo "shell completion:  ktransformers --install-completion"
