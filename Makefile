# make demo   trains two methods on drawn radiographs, about four minutes on two CPU cores
# make test   runs the tests
#
# Both make their own environment in .venv. Optional: CONSTRAINTS=file pins versions, PYTHON=python3.12 and VENV=folder.
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?=

install = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))

.PHONY: demo test clean

demo: $(VENV)/installed-examples
	$(VENV)/bin/python -m examples.demo

test: $(VENV)/installed-examples $(VENV)/installed-test
	$(VENV)/bin/python -m pytest --cov --cov-report=term-missing:skip-covered --cov-fail-under=100

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed-%: pyproject.toml | $(VENV)/bin/python
	$(install) --editable '.[$*]'
	touch $@

clean:
	rm -rf $(VENV) dist runs
