# make demo   trains two methods on drawn radiographs, about four minutes on two CPU cores
# make test   runs the tests
# make docs   builds the documentation into build/docs
#
# All make their own environment in .venv. Optional: CONSTRAINTS=file pins versions, PYTHON=python3.12 and VENV=folder.
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?=

install = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))

.PHONY: demo test docs clean

demo: $(VENV)/installed-examples
	$(VENV)/bin/python -m examples.demo

test: $(VENV)/installed-examples $(VENV)/installed-test
	$(VENV)/bin/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal \
		--cov --cov-report=term-missing:skip-covered --cov-fail-under=100

docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed-%: pyproject.toml | $(VENV)/bin/python
	$(install) --editable '.[$*]'
	touch $@

clean:
	rm -rf $(VENV) build dist runs
