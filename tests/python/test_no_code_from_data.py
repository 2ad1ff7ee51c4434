"""Nothing of the package unpickles, evaluates or imports what data names; checks do not vanish."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "ktransformers"
FILES = sorted(PACKAGE.rglob("*.py"))
UNPICKLERS = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
RUNNERS = {"eval", "exec", "compile", "__import__"}
LOADERS = {"torch.load", "np.load", "numpy.load", "yaml.load", "runpy.run_path", "os.system"}
# Modules whose names the sources spell out, or the user's own words (--allow-plugin).
SPELLED_OUT = {
    "operators/registry.py", "models/registry.py", "models/base.py", "cli/plugins.py",
}  # fmt: skip


def problems(tree: ast.AST, name: str) -> list[str]:
    found = []
    for node in ast.walk(tree):
        line = f"{name}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            found += [f"{line}: imports {n}" for n in names if n.split(".")[0] in UNPICKLERS]
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in RUNNERS | LOADERS:
                found.append(f"{line}: calls {called}")
            if called.endswith("import_module") and not isinstance(node.args[0], ast.Constant):
                if name not in SPELLED_OUT:
                    found.append(f"{line}: imports what a value names")
            for keyword in node.keywords:
                value = getattr(keyword.value, "value", None)
                if keyword.arg in ("trust_remote_code", "shell") and value is not False:
                    found.append(f"{line}: {keyword.arg}")
        if isinstance(node, ast.Assert) and name.startswith("server/"):
            found.append(f"{line}: an assert vanishes under python -O")
    return found


def test_no_file_of_the_package_does_so():
    assert len(FILES) > 100
    found = []
    for path in FILES:
        name = path.relative_to(PACKAGE).as_posix()
        found += problems(ast.parse(path.read_text()), name)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "source",
    ["import pickle", "from marshal import loads", "eval(x)", "torch.load(p)", "assert key",
     "importlib.import_module(name)", "A.from_pretrained(p, trust_remote_code=True)",
     "subprocess.run(x, shell=True)"],
)  # fmt: skip
def test_the_check_sees_it(source):
    assert problems(ast.parse(source), "server/x.py")
