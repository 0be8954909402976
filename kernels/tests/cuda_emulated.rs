//! The generated CUDA C++ itself, run on the host: every test of the kernels again, on emulated CUDA. And texts with
//! faults, to show that the emulator sees them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
// Each test file brings its own `common`.
#![allow(clippy::duplicate_mod)]

#[path = "attention.rs"]
mod attention;
#[path = "attention_backward.rs"]
mod attention_backward;
mod common;
#[path = "cross_entropy.rs"]
mod cross_entropy;
#[path = "differential.rs"]
mod differential;
#[path = "fold_columns.rs"]
mod fold_columns;
#[path = "horizontal.rs"]
mod horizontal;
#[path = "products.rs"]
mod products;
#[path = "scatter_add.rs"]
mod scatter_add;
#[path = "split.rs"]
mod split;
#[path = "tf32.rs"]
mod tf32;
#[path = "vectors.rs"]
mod vectors;

use common::emulator::{Bytes, Emulator};

/// Runs a text of one cube over a float a unit, at least 64, `x[i] = i`, and as many for the results.
fn run(units: u32, body: &str) -> Option<Result<Vec<f32>, String>> {
    let emulator = match Emulator::present() {
        Ok(e) => e,
        Err(e) => {
            println!("skipped: emulated cuda: {e}");
            return None;
        }
    };
    let text = format!(
        "struct alignas(16) float_4 {{ float i_0; float i_1; float i_2; float i_3; }};\n\
         extern \"C\" __global__ void __launch_bounds__({units}) faulty(float const* const __restrict__ x, float * const \
         __restrict__ y) {{\nunsigned const t = threadIdx.x;\n{body}\n}}\n"
    );
    let bytes = |x: &[f32]| Bytes { data: x.iter().flat_map(|x| x.to_le_bytes()).collect(), element: 4 };
    let x: Vec<f32> = (0..units.max(64)).map(|i| i as f32).collect();
    let buffers = [(1, bytes(&x)), (2, bytes(&vec![f32::NAN; x.len()]))];
    Some(
        emulator
            .run_text(&text, ([1, 1, 1], units), &buffers)
            .map(|read| read[0].chunks_exact(4).map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect()),
    )
}

/// The block's memory, as CubeCL declares it.
const SHARED: &str = "struct float_64 { float data[64]; };\nextern __shared__ __align__(16) char block[];\n\
                      float_64* m = reinterpret_cast<float_64*>(&block[0]);\nm->data[t] = x[t];\n";

/// A fault is seen, and the message tells which.
fn says(units: u32, body: &str, part: &str) {
    let Some(result) = run(units, body) else { return };
    let error = result.expect_err(part);
    assert!(error.contains(part), "{error}");
    assert!(error.contains("of the text:"), "no line: {error}");
}

#[test]
fn texts_without_faults_run() {
    let Some(result) = run(64, "y[t] = x[t] * 2.0f;") else { return };
    assert_eq!(result.unwrap()[63], 126.0);
    let sum =
        "float s = x[t]; for (int k = 16; k > 0; k /= 2) { s += __shfl_xor_sync(__activemask(), s, k); }\ny[t] = s;";
    let Some(result) = run(32, sum) else { return };
    assert_eq!(result.unwrap()[5], 496.0);
    let Some(result) = run(64, &format!("{SHARED}__syncthreads();\ny[t] = m->data[63 - t];")) else { return };
    assert_eq!(result.unwrap()[0], 63.0);
}

#[test]
fn a_missing_barrier_is_seen() {
    says(64, &format!("{SHARED}y[t] = m->data[63 - t];"), "with no barrier between");
    // Written over while others still read.
    says(
        64,
        &format!("{SHARED}__syncthreads();\ny[t] = m->data[63 - t];\nm->data[t] = 0.0f;"),
        "with no barrier between",
    );
    // A warp's barrier is enough for what stays in the warp, and for no more.
    let near = "__syncwarp();\ny[t] = m->data[t ^ 1];";
    if let Some(result) = run(64, &format!("{SHARED}{near}")) {
        assert_eq!(result.unwrap()[2], 3.0);
    }
    says(64, &format!("{SHARED}{}", near.replace("^ 1", "^ 32")), "with no barrier between");
    says(64, "y[t / 2] = x[t];", "with no barrier between");
}

#[test]
fn atomics_meet_each_other_and_nothing_else() {
    let count = format!(
        "{}if (t == 0) {{ m->data[0] = 0.0f; }}\n__syncthreads();\natomicAdd(&m->data[0], 1.0f);\n",
        SHARED.replace("m->data[t] = x[t];\n", "")
    );
    let Some(result) = run(64, &format!("{count}__syncthreads();\ny[t] = m->data[0];")) else { return };
    assert_eq!(result.unwrap()[5], 64.0);
    says(64, &format!("{count}y[t] = m->data[0];"), "no barrier between");
    says(64, &format!("{count}if (t == 9) {{ m->data[0] = 0.0f; }}\ny[t] = 0.0f;"), "no barrier between");
}

#[test]
fn a_stray_access_is_seen() {
    says(64, "y[t] = x[t + 1];", "reads 4 bytes at byte 256 of operand");
    says(64, "y[t + 1] = x[t];", "writes 4 bytes at byte 256 of result");
    says(64, "y[t] = x[long(t) - 1];", "reads 4 bytes at byte -4 of operand");
    says(
        64,
        "if (t < 8) {\nfloat_4 const v = *reinterpret_cast<float_4 const*>(&x[t + 1]);\ny[t] = v.i_0;\n}",
        "not a multiple of 16",
    );
    says(64, &format!("{SHARED}__syncthreads();\ny[t] = m->data[t + 1];"), "index 64 is outside");
}

#[test]
fn a_barrier_that_some_miss_is_seen() {
    says(
        64,
        &format!("{SHARED}if (t < 32) {{\n__syncthreads();\n}} else {{\n__syncthreads();\n}}\ny[t] = 0.0f;"),
        "not all reach",
    );
    // One with a number is the same for whoever names it, wherever.
    let named = |other: u32| {
        format!(
            "{SHARED}if (t < 32) {{\nasm volatile(\"bar.sync 1;\" :  : );\n}} else {{\nasm volatile(\"bar.sync {other};\" :  : );\n}}\n\
             y[t] = m->data[63 - t];"
        )
    };
    if let Some(result) = run(64, &named(1)) {
        assert_eq!(result.unwrap()[0], 63.0);
    }
    says(64, &named(2), "not all reach");
    says(64, &named(0), "barrier 0");
    says(
        64,
        "float s = x[t];\nif (t % 32 < 16) {\ns = __shfl_xor_sync(0xffffffffu, s, 1);\n}\n__syncthreads();\ny[t] = s;",
        "lanes",
    );
    says(32, "float s = x[t];\nif (t < 16) {\ns = __shfl_xor_sync(__activemask(), s, 16);\n}\ny[t] = s;", "not there");
}

#[test]
fn a_copy_that_nobody_waits_for_is_seen() {
    let copy = |wait: &str, sync: &str| {
        format!(
            "{}asm volatile(\"cp.async.ca.shared::cta.global [%0], [%1], 4, 4;\" :  : \"r\"(__cvta_generic_to_shared(&m->data[t])), \
             \"l\"(&x[t]));\nasm volatile(\"cp.async.commit_group;\" :  : );\n{wait}\n{sync}\ny[t] = m->data[t ^ 1];",
            SHARED.replace("m->data[t] = x[t];\n", "")
        )
    };
    let wait = "asm volatile(\"cp.async.wait_group 0;\" :  : );";
    if let Some(result) = run(64, &copy(wait, "__syncthreads();")) {
        assert_eq!(result.unwrap()[0], 1.0);
    }
    says(64, &copy(wait, ""), "with no barrier between");
    // Without the wait the copies land late in one turn, early in the other: the results differ.
    let Some(result) = run(64, &copy("", "__syncthreads();")) else { return };
    let error = result.expect_err("nobody waits");
    assert!(error.contains("which thread goes first"), "{error}");
}

#[test]
fn an_unknown_instruction_is_an_error() {
    says(1, "asm volatile(\"frobnicate.f32 %0;\" :  : \"f\"(x[0]));", "no such instruction: frobnicate.f32");
}

/// A warpgroup's product of 64 x 8 x 32 in bf16, both factors along k in atoms of 128 bytes, the fourth row of chunks
/// exchanged with the row's number as the manual's table has it. Each thread leaves what its sums are off by.
fn warpgroup(stride: u32, wait: &str) -> String {
    let store = |rows: u32, base: u32, value: &str| {
        format!(
            "for (unsigned i = t; i < {rows} * 32; i += 128) {{\nunsigned const r = i / 32, k = i % 32;\n\
             m->data[{base} + r * 64 + ((k / 8) ^ (r % 8)) * 8 + k % 8] = __nv_bfloat16(float({value}));\n}}\n"
        )
    };
    let (a, b) = ("int((r * 7 + k * 3) % 11) - 5", "int((r * 2 + k * 5) % 7) - 3");
    let both = |text: &str, r: &str| text.replace('r', r);
    format!(
        "struct tile {{ __nv_bfloat16 data[4608]; }};\nextern __shared__ __align__(1024) char block[];\n\
         tile* m = reinterpret_cast<tile*>(&block[0]);\n{}{}__syncthreads();\n\
         asm volatile(\"fence.proxy.async;\" :  : );\nunsigned long long const at = __cvta_generic_to_shared(m->data);\n\
         asm volatile(\".reg .f32 acc<4>;\" :  : );\n\
         asm volatile(\"mov.f32 acc0, 0f00000000; mov.f32 acc1, 0f00000000; mov.f32 acc2, 0f00000000; mov.f32 acc3, \
         0f00000000;\" :  : );\n\
         for (unsigned k = 0; k < 2; ++k) {{\n\
         unsigned long long const rest = ({stride}ull >> 4) << 32 | 1ull << 62;\n\
         unsigned long long const da = (at + k * 32) >> 4 | rest, db = (at + 8192 + k * 32) >> 4 | rest;\n\
         asm volatile(\"wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {{acc0, acc1, acc2, acc3}}, %0, %1, 1, 1, 1, 0, \
         0;\" :  : \"l\"(da), \"l\"(db));\n}}\nasm volatile(\"wgmma.commit_group.sync.aligned;\" :  : );\n{wait}\n\
         float s[4];\nasm volatile(\"mov.f32 %0, acc0; mov.f32 %1, acc1; mov.f32 %2, acc2; mov.f32 %3, acc3;\" : \
         \"=f\"(s[0]), \"=f\"(s[1]), \"=f\"(s[2]), \"=f\"(s[3]) : );\n\
         float off = 0.0f;\nfor (unsigned i = 0; i < 4; ++i) {{\n\
         unsigned const row = t / 32 * 16 + t % 32 / 4 + i / 2 * 8, col = t % 4 * 2 + i % 2;\nfloat want = 0.0f;\n\
         for (unsigned k = 0; k < 32; ++k) want += float({}) * float({});\n\
         off += fabs(s[i] - want);\n}}\ny[t] = off;",
        store(64, 0, a),
        store(8, 4096, b),
        both(a, "row"),
        both(b, "col"),
    )
}

#[test]
fn descriptors_name_swizzled_tiles() {
    let wait = "asm volatile(\"wgmma.wait_group.sync.aligned 0;\" :  : );";
    let Some(result) = run(128, &warpgroup(1024, wait)) else { return };
    assert_eq!(result.unwrap(), [0.0; 128]);
    // Rows of atoms that step by half, and sums read before they are there.
    let Some(result) = run(128, &warpgroup(512, wait)) else { return };
    assert!(result.unwrap().iter().any(|off| *off > 1.0));
    let Some(result) = run(128, &warpgroup(1024, "")) else { return };
    let error = result.expect_err("nobody waits");
    assert!(error.contains("which thread goes first"), "{error}");
}
