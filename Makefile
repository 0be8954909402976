# Two commands: `make demo` answers about a video, `make test` passes the tests.
# Each first brings what is missing (scripts/setup.sh) and says what it did.
.PHONY: demo test
demo:
	@scripts/demo.sh
test:
	@scripts/test.sh
