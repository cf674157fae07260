from __future__ import annotations

import subprocess
import sys

IMPORT = """
import sys
import torch
from profiler.models.import_quantised import import_quantised

compile_now = torch.compile
import_quantised("peft")
assert torch.compile is compile_now
assert "bitsandbytes" in sys.modules
assert "torch._inductor.compile_fx" not in sys.modules
"""


def test_the_compiler_is_not_imported_with_peft() -> None:
    subprocess.run([sys.executable, "-c", IMPORT], check=True)


COMPILE = """
import sys
import types
import torch
from profiler.models import import_quantised

made = []
torch.compile = lambda function, **options: made.append((function, options)) or function
with import_quantised._compiled_when_called():
    twice = torch.compile(lambda x: 2 * x, dynamic=False)

    @torch.compile(dynamic=True)
    def thrice(x):
        return 3 * x

assert not made
assert [twice(1), twice(2), thrice(1)] == [2, 4, 3]
assert [options for _, options in made] == [{"dynamic": False}, {"dynamic": True}]
"""


def test_a_function_is_compiled_once_when_it_is_called() -> None:
    subprocess.run([sys.executable, "-c", COMPILE], check=True)
