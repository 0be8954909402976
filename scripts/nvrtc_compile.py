"""Compiles CUDA C++ with NVIDIA's run-time compiler, without a GPU, and prints what each kernel costs.

python nvrtc_compile.py [--arch sm_80,sm_90a] FILE.cu...

Run it with the Python of `scripts/setup.sh nvrtc`: the library, the headers and cuobjdump are looked for there.
One line a kernel: name, arch, registers, shared bytes, bytes of stack; at the end a table by kernel of the list. Exits with 1
when a file does not compile, when a kernel for matrix units has none in its machine code, or when one keeps sums on the stack.
A line `// unit: NAME` in a file starts a new translation unit, so many kernels can come in one file; what follows the last `].`
of a name is the kernel's own.
"""
import argparse, ctypes, os, re, subprocess, sys, sysconfig, tempfile
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# Kernels by the end of their names, and the instruction that makes them what they are.
MATRIX = {".mma": r"\bHMMA\.", ".tf32": r"\bHMMA\..*TF32", ".wgmma": r"\bHGMMA\."}

HOME = Path(sysconfig.get_paths()["purelib"]) / "nvidia"

# Bytes of stack that such a kernel may have: a few addresses, but none of its sums.
SPILLED = 64


def found(pattern):
    paths = sorted(HOME.glob(pattern))
    if not paths:
        sys.exit(f"nvrtc_compile: no {pattern} under {HOME}; run scripts/setup.sh nvrtc and use its Python")
    return paths[0]


class Nvrtc:
    """The few calls that turn a source into a cubin."""

    def __init__(self):
        # NVRTC opens its built-ins by bare name: they are found because they are loaded already.
        self.builtins = ctypes.CDLL(str(found("**/libnvrtc-builtins.so.*")), mode=ctypes.RTLD_GLOBAL)
        self.lib = ctypes.CDLL(str(found("**/libnvrtc.so.*")))
        headers = found("**/cuda_bf16.h").parent
        self.include = [f"--include-path={p}" for p in (headers, headers / "cccl") if p.is_dir()]

    def text(self, program, what):
        size = ctypes.c_size_t()
        getattr(self.lib, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        data = ctypes.create_string_buffer(size.value)
        getattr(self.lib, f"nvrtcGet{what}")(program, data)
        return data.raw

    def cubin(self, name, source, arch):
        """(cubin, None) or (None, the compiler's log)."""
        program = ctypes.c_void_p()
        if self.lib.nvrtcCreateProgram(ctypes.byref(program), source.encode(), name.encode(), 0, None, None):
            return None, "nvrtcCreateProgram failed"
        options = [o.encode() for o in [f"--gpu-architecture={arch}", "--std=c++17", *self.include]]
        code = self.lib.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
        if code:
            log = self.text(program, "ProgramLog").rstrip(b"\0\n").decode(errors="replace")
            result = None, log or f"nvrtcCompileProgram answered {code}"
        else:
            result = self.text(program, "CUBIN"), None
        self.lib.nvrtcDestroyProgram(ctypes.byref(program))
        return result


def inspected(cubin, *options):
    """What cuobjdump says of a cubin."""
    tool = found("**/bin/cuobjdump")
    tool.chmod(tool.stat().st_mode | 0o111)
    found("**/bin/nvdisasm").chmod(0o755)
    env = {**os.environ, "PATH": f"{tool.parent}:{os.environ['PATH']}"}
    with tempfile.NamedTemporaryFile(suffix=".cubin") as f:
        f.write(cubin)
        f.flush()
        return subprocess.run([tool, *options, f.name], capture_output=True, text=True, check=True, env=env).stdout


def usage(cubin):
    """[(kernel, registers, shared, stack)]; STACK holds the spills and local arrays."""
    out = inspected(cubin, "--dump-resource-usage")
    rows = re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", out)
    return [(n, int(r), int(sh), int(st) + int(lo)) for n, r, st, sh, lo in rows]


def units(path):
    """(name, source) of every translation unit in the file."""
    pieces = re.split(r"^// unit: *(.*)$", Path(path).read_text(), flags=re.M)
    if pieces[0].strip():
        yield Path(path).name, pieces[0]
    for name, source in zip(pieces[1::2], pieces[2::2]):
        yield f"{Path(path).name}:{name.strip()}", source


def faults(name, cubin, stack):
    """What a kernel for matrix units must not be."""
    for end, instruction in MATRIX.items():
        if name.endswith(end):
            if not re.search(instruction, inspected(cubin, "--dump-sass")):
                yield f"{name} has no {instruction[2:-2]} in its machine code"
            if stack > SPILLED:
                yield f"{name} keeps {stack} bytes on the stack"


def compiled(nvrtc, name, source, arch):
    """(cubin, log, [(kernel, registers, shared, stack, faults)])"""
    cubin, log = nvrtc.cubin(name, source, arch)
    rows = [] if cubin is None else usage(cubin)
    return cubin, log, [(*row, list(faults(name, cubin, row[3]))) for row in rows]


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--arch", default="sm_80,sm_90a")
    args.add_argument("--dump", help="a folder to keep the cubins in")
    args.add_argument("files", nargs="+")
    args = args.parse_args()
    nvrtc, failed = Nvrtc(), 0
    table = defaultdict(list)
    # Programs share kernels: each text is compiled once an arch, by as many threads as there are cores.
    jobs, shared = {}, 0
    for path in args.files:
        for name, source in units(path):
            for arch in args.arch.split(","):
                shared += (source.strip(), arch) in jobs
                jobs.setdefault((source.strip(), arch), name)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(lambda job: compiled(nvrtc, jobs[job], *job), jobs)
        for (job, (cubin, log, rows)) in zip(jobs, results):
            name, arch = jobs[job], job[1]
            if cubin is None:
                failed += 1
                print(f"FAILED  {name}  {arch}\n{log}")
                continue
            if args.dump:
                os.makedirs(args.dump, exist_ok=True)
                Path(args.dump, f"{name.replace('/', '_')}.{arch}.cubin").write_bytes(cubin)
            for kernel, registers, memory, stack, wrong in rows:
                print(f"{name}  {kernel}  {arch}  {registers} registers  {memory} B shared  {stack} B stack and local")
                if "]." in name:
                    table[name.rsplit("].", 1)[1], arch].append((registers, memory, stack))
                for fault in wrong:
                    failed += 1
                    print(f"FAILED  {fault}  {arch}")
    done = len(jobs)
    if table:
        print(f"{'kernel':<24} {'arch':<7} {'texts':>5} {'registers':>10} {'shared B':>15} {'with stack':>10}")
        for (kernel, arch), rows in sorted(table.items()):
            spans = [f"{min(r[i] for r in rows)}-{max(r[i] for r in rows)}" for i in (0, 1)]
            stacked = sum(r[2] > 0 for r in rows)
            print(f"{kernel:<24} {arch:<7} {len(rows):>5} {spans[0]:>10} {spans[1]:>15} {stacked:>10}")
    print(f"nvrtc: {done} texts compiled, {failed} failed; {shared} more were the same texts again")
    return 1 if failed or not done else 0


if __name__ == "__main__":
    sys.exit(main())
