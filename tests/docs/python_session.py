"""A program that executes the Python blocks of a page in one namespace: JSON requests on stdin, answers on stdout."""

import contextlib
import io
import json
import os
import sys
import traceback
import types

if __name__ == "__main__":
    # Other output, as of processes that the code starts, goes to standard error.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.path[0] = os.getcwd()
    page = sys.modules["page"] = types.ModuleType("page")
    for line in sys.stdin:
        request, output, error = json.loads(line), io.StringIO(), None
        try:
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
                exec(compile("\n" * request["line"] + request["code"], "page", "exec"), page.__dict__)
        except BaseException:
            error = traceback.format_exc()
        answers.write(json.dumps({"output": output.getvalue(), "error": error}) + "\n")
        answers.flush()
