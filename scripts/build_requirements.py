"""Prints [build-system] requires of pyproject.toml, one requirement a line, for pip."""

import tomllib

with open("pyproject.toml", "rb") as file:
    print("\n".join(tomllib.load(file)["build-system"]["requires"]))
