"""Compiles CUDA C++ with NVIDIA's run-time compiler, without a GPU, and prints what each kernel costs.

python nvrtc_compile.py [--arch sm_80,sm_90a] FILE.cu...

Run it with the Python of `scripts/setup.sh nvrtc`: the library, the headers and cuobjdump are looked for there.
One line a kernel: name, arch, registers, shared bytes, spilled bytes. Exits with 1 when a file does not compile.
A line `// unit: NAME` in a file starts a new translation unit, so many kernels can come in one file.
"""
import argparse, ctypes, os, re, subprocess, sys, sysconfig, tempfile
from pathlib import Path

HOME = Path(sysconfig.get_paths()["purelib"]) / "nvidia"


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


def usage(cubin):
    """[(kernel, registers, shared, spilled)] by cuobjdump; STACK holds the spills and local arrays."""
    tool = found("**/bin/cuobjdump")
    tool.chmod(tool.stat().st_mode | 0o111)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as f:
        f.write(cubin)
        f.flush()
        out = subprocess.run([tool, "--dump-resource-usage", f.name], capture_output=True, text=True, check=True).stdout
    rows = re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", out)
    return [(n, int(r), int(sh), int(st) + int(lo)) for n, r, st, sh, lo in rows]


def units(path):
    """(name, source) of every translation unit in the file."""
    pieces = re.split(r"^// unit: *(.*)$", Path(path).read_text(), flags=re.M)
    if pieces[0].strip():
        yield Path(path).name, pieces[0]
    for name, source in zip(pieces[1::2], pieces[2::2]):
        yield f"{Path(path).name}:{name.strip()}", source


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--arch", default="sm_80,sm_90a")
    args.add_argument("--dump", help="a folder to keep the cubins in")
    args.add_argument("files", nargs="+")
    args = args.parse_args()
    nvrtc, done, failed = Nvrtc(), 0, 0
    for path in args.files:
        for name, source in units(path):
            for arch in args.arch.split(","):
                cubin, log = nvrtc.cubin(name, source, arch)
                if cubin is None:
                    failed += 1
                    print(f"FAILED  {name}  {arch}\n{log}")
                    continue
                done += 1
                if args.dump:
                    os.makedirs(args.dump, exist_ok=True)
                    Path(args.dump, f"{name.replace('/', '_')}.{arch}.cubin").write_bytes(cubin)
                for kernel, registers, shared, spilled in usage(cubin):
                    print(f"{name}  {kernel}  {arch}  {registers} registers  {shared} B shared  {spilled} B stack and local")
    print(f"nvrtc: {done} compiled, {failed} failed")
    return 1 if failed or not done else 0


if __name__ == "__main__":
    sys.exit(main())
