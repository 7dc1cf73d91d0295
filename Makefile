# `make demo` and `make test` are all a newcomer types: the first target that needs .venv builds it.

python := .venv/bin/python
installed := .venv/installed

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow lint format docs bench install clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' Makefile

demo: $(installed) ## load at several sizes beside torchvision, and train under a schedule beside a fixed size
	@$(python) -m pipelines.demo

test: $(installed) ## check style and types, then run the tests (options for pytest: ARGS="-k loader -x")
	@lint=0; $(MAKE) --no-print-directory lint || lint=1; \
	$(python) -m pytest $(ARGS) && exit $$lint

test-slow: $(installed) ## minutes of damaged files, killed conversions and changing sizes
	@$(python) -m pytest -m slow $(ARGS)

lint: $(installed) ## check style and types
	@.venv/bin/ruff check
	@.venv/bin/ruff format --check
	@PYRIGHT_PYTHON_IGNORE_WARNINGS=1 .venv/bin/pyright

format: $(installed) ## rewrite the sources in the project's style
	@.venv/bin/ruff check --fix
	@.venv/bin/ruff format

docs: $(installed) ## build the documentation in site/
	@.venv/bin/mkdocs build --strict

bench: $(installed) ## compare the speed of all loaders on DATA=<class folder of JPEGs>
	@test -n "$(DATA)" || { echo 'make bench needs images: make bench DATA=<class folder of JPEGs>' >&2; exit 2; }
	@$(python) -m tools.benchmarks.loaders "$(DATA)" $(ARGS)

install: ## build or repair .venv, trying again whatever could not be installed before
	@rm -f $(installed)
	@$(MAKE) --no-print-directory $(installed)

clean: ## remove .venv, caches and what the demo wrote
	rm -rf .venv .demo build dist site .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(installed): pyproject.toml tools/install.sh
	@bash tools/install.sh
	@touch $@
