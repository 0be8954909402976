//! Devices and transfers: every result is poisoned before a launch, because a device's panic can read as stale bytes.

use std::collections::BTreeMap;
use std::sync::Mutex;

use cubecl::{Device, prelude::*};
use half::{bf16, f16};
use omchat_codegen::{Family, Schedule, Target, Work};
use omchat_ir::Dtype;
use omchat_kernels::{Args, Buffer, Horizontal, Launch, Prepared};

use super::emulator::{Bytes, Emulator, hash};
use super::reference::Host;

/// A device present, and its target.
pub struct Present {
    /// None where CUDA is emulated.
    pub client: Option<Client>,
    pub target: Target,
}

/// Whether this test runs what others run on devices on emulated CUDA.
const EMULATED: bool = matches!(env!("CARGO_CRATE_NAME").as_bytes(), b"cuda_emulated");

/// Of the cases drawn for a device one in so many is emulated: each is a kernel for g++ to compile.
const FEWER: u64 = 3;

/// CUDA as g++ has it, for Ampere and for Hopper.
fn emulated() -> Vec<Present> {
    let there = Emulator::present().map(|_| ());
    let built = if cfg!(feature = "cuda") { Ok(()) } else { Err("built without the feature".into()) };
    if let Err(e) = built.and(there) {
        println!("skipped: emulated cuda: {e}");
        return vec![];
    }
    [80, 90].map(|sm| Present { client: None, target: Target::cuda(sm) }).into()
}

/// The CPU runtime and a software or real Vulkan device; says what is skipped.
pub fn devices() -> Vec<Present> {
    if EMULATED {
        return emulated();
    }
    let mut out = Vec::new();
    #[cfg(feature = "cpu")]
    match Device::cpu() {
        Ok(d) => {
            let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
            out.push(Present { client: Some(d.client()), target: Target::cpu(cores) });
        }
        Err(e) => println!("skipped: cpu: {e:?}"),
    }
    #[cfg(feature = "wgpu")]
    match Device::wgpu(cubecl::device::WgpuDeviceKind::default()) {
        Ok(d) => {
            let client = d.client();
            let turns = if plays(&client) { 65_535 } else { usize::MAX };
            out.push(Present { client: Some(client), target: Target { max_bindings: 31, turns, ..Target::wgpu() } });
        }
        Err(e) => println!("skipped: wgpu: {e:?}"),
    }
    #[cfg(feature = "cuda")]
    match Device::cuda(0) {
        Ok(d) => {
            let client = d.client();
            let sm = client.properties().identity.fingerprint.trim_start_matches("ptx_sm").parse();
            let target = Target::cuda(sm.expect("a compute capability"));
            out.push(Present { client: Some(client), target });
        }
        Err(e) => println!("skipped: cuda: {e:?}"),
    }
    for (name, built) in
        [("cpu", cfg!(feature = "cpu")), ("wgpu", cfg!(feature = "wgpu")), ("cuda", cfg!(feature = "cuda"))]
    {
        if !built {
            println!("skipped: {name}: built without the feature");
        }
    }
    assert!(!out.is_empty(), "no device: run with --features cpu");
    out
}

/// Whether a CPU plays a Vulkan device: CubeCL hides its planes.
#[cfg(feature = "wgpu")]
fn plays(client: &Client) -> bool {
    !client.properties().features.plane.contains(cubecl::features::Plane::Ops)
}

/// The Vulkan device with the schedules that it is offered as a software driver, where it is one.
pub fn software() -> Option<Present> {
    if EMULATED {
        return None;
    }
    let found = devices().into_iter().find(|p| p.target.family == Family::Wgpu && p.target.turns < usize::MAX);
    if found.is_none() {
        println!("skipped: schedules for software drivers: there is none");
    }
    found.map(|p| Present { target: Target { software: true, shared_bytes: 32 << 10, ..p.target }, ..p })
}

fn bytes(h: &Host) -> Vec<u8> {
    match h.dtype {
        Dtype::F32 => h.data.iter().flat_map(|&x| (x as f32).to_le_bytes()).collect(),
        Dtype::Bf16 => h.data.iter().flat_map(|&x| bf16::from_f64(x).to_le_bytes()).collect(),
        Dtype::F16 => h.data.iter().flat_map(|&x| f16::from_f64(x).to_le_bytes()).collect(),
        Dtype::I32 | Dtype::Bool => h.data.iter().flat_map(|&x| (x as i32).to_le_bytes()).collect(),
    }
}

fn numbers(dtype: Dtype, b: &[u8]) -> Vec<f64> {
    match dtype {
        Dtype::F32 => b.chunks_exact(4).map(|c| f64::from(f32::from_le_bytes([c[0], c[1], c[2], c[3]]))).collect(),
        Dtype::Bf16 => b.chunks_exact(2).map(|c| bf16::from_le_bytes([c[0], c[1]]).to_f64()).collect(),
        Dtype::F16 => b.chunks_exact(2).map(|c| f16::from_le_bytes([c[0], c[1]]).to_f64()).collect(),
        Dtype::I32 | Dtype::Bool => {
            b.chunks_exact(4).map(|c| f64::from(i32::from_le_bytes([c[0], c[1], c[2], c[3]]))).collect()
        }
    }
}

/// What poison reads as, by dtype.
pub fn poison(dtype: Dtype) -> f64 {
    if dtype.is_float() { f64::NAN } else { f64::from(i32::MIN + 7) }
}

impl Present {
    /// The schedules of a kernel that this device is offered.
    pub fn offered(&self, kernel: &dyn Launch, work: &Work) -> Vec<Schedule> {
        let all = kernel.schedules(work, &self.target).unwrap_or_default();
        all.into_iter().filter(|s| kernel.turns(work, s) <= self.target.turns).collect()
    }

    /// How many of so many drawn cases this device tries.
    pub fn draws(&self, of: u64) -> u64 {
        if self.client.is_some() {
            return of;
        }
        let left = of.div_ceil(FEWER);
        println!("{}: emulates {left} cases of {of}: 1 in {FEWER}", self.target.name);
        left
    }

    /// Whether this device tries a case of two tests that share their cases, the first and the second: of what is emulated
    /// each test takes every other one.
    pub fn takes(&self, case: usize, test: usize) -> bool {
        self.client.is_some() || case % 2 == test
    }

    /// The schedules of a case that this device tries: one in turn, where each is a text that compiles for seconds.
    pub fn tries(&self, all: Vec<Schedule>, turn: usize) -> Vec<Schedule> {
        if self.client.is_some() && !self.target.software || all.is_empty() {
            return all;
        }
        let one = turn % all.len();
        all.into_iter().skip(one).take(1).collect()
    }

    fn emulate(
        &self,
        kernel: &dyn Launch,
        work: &Work,
        schedule: &Schedule,
        [operands, results]: [&[Host]; 2],
    ) -> Vec<Vec<f64>> {
        let of = |h: &Host| Bytes { data: bytes(h), element: h.dtype.bytes() as u32 };
        let (ins, outs): (Vec<_>, Vec<_>) = (operands.iter().map(of).collect(), results.iter().map(of).collect());
        // What Ampere ran Hopper need not run again: one schedule is one text.
        static RAN: Mutex<BTreeMap<String, Vec<Vec<u8>>>> = Mutex::new(BTreeMap::new());
        let key = format!("{} {schedule} {work:?} {:016x}", kernel.name(), hash((&ins, &outs)));
        let known = RAN.lock().expect("no test panics in here").get(&key).cloned();
        let read = known.unwrap_or_else(|| {
            let prepared = kernel.prepare(work, schedule).expect("prepares");
            let emulator = Emulator::present().expect("is there");
            emulator
                .run(&prepared, self.target.sm, &ins, &outs)
                .unwrap_or_else(|e| panic!("{} {schedule} on emulated {}: {e}", kernel.name(), self.target.name))
        });
        let numbers = read.iter().zip(results).map(|(b, h)| numbers(h.dtype, b)).collect();
        RAN.lock().expect("no test panics in here").insert(key, read);
        numbers
    }

    /// Runs a kernel; buffers lie at an offset in larger ones, as in an arena.
    pub fn run(
        &self,
        kernel: &dyn Launch,
        work: &Work,
        schedule: &Schedule,
        operands: &[Host],
        results: &[Host],
    ) -> Vec<Vec<f64>> {
        let Some(client) = &self.client else { return self.emulate(kernel, work, schedule, [operands, results]) };
        let prepared = kernel.prepare(work, schedule).expect("prepares");
        let up = Uploaded::of(client, self.target.align, &prepared, operands, results);
        prepared.launch(client, &up.args()).expect("launches");
        up.read(client, results)
    }

    /// Runs launches side by side.
    pub fn run_beside(&self, launches: &[&Prepared], operands: &[&[Host]], results: &[&[Host]]) -> Vec<Vec<Vec<f64>>> {
        let joint = Horizontal::of(launches).expect("can be joined");
        let each = || launches.iter().zip(operands).zip(results).map(|((l, o), r)| (*l, *o, *r));
        let Some(client) = &self.client else {
            let of = |h: &Host| Bytes { data: bytes(h), element: h.dtype.bytes() as u32 };
            let all = each().map(|(l, o, r)| (l, o.iter().map(of).collect(), r.iter().map(of).collect()));
            let emulator = Emulator::present().expect("is there");
            let read = emulator.run_beside(&joint, self.target.sm, &all.collect::<Vec<_>>());
            let read = read.unwrap_or_else(|e| panic!("side by side on emulated {}: {e}", self.target.name));
            let one = |(b, h): (&Vec<u8>, &Host)| numbers(h.dtype, b);
            return read.iter().zip(results).map(|(b, r)| b.iter().zip(*r).map(one).collect()).collect();
        };
        let up: Vec<_> = each().map(|(l, o, r)| Uploaded::of(client, self.target.align, l, o, r)).collect();
        let args: Vec<Args> = up.iter().map(Uploaded::args).collect();
        joint.launch(client, launches, &args).expect("launches");
        up.iter().zip(results).map(|(u, r)| u.read(client, r)).collect()
    }
}

/// A launch's buffers on a device.
struct Uploaded {
    operands: Vec<Buffer>,
    results: Vec<Buffer>,
    scratch: Buffer,
    meta: Buffer,
}

impl Uploaded {
    fn of(client: &Client, align: usize, prepared: &Prepared, operands: &[Host], results: &[Host]) -> Uploaded {
        let up = |h: &Host| {
            let mut b = vec![0xee; align];
            b.extend(bytes(h));
            b.extend([0xee; 64]);
            b.resize(b.len().next_multiple_of(4), 0xee);
            let len = b.len() as u64;
            // A device that packs halves binds whole words.
            let body = (h.data.len() * h.dtype.bytes()).next_multiple_of(4) as u64;
            let handle = client.create_from_slice(&b).offset_start(align as u64).offset_end(len - align as u64 - body);
            Buffer { handle, elements: h.data.len() }
        };
        let words: Vec<u8> = prepared.meta().iter().flat_map(|w| w.to_le_bytes()).collect();
        Uploaded {
            operands: operands.iter().map(up).collect(),
            results: results.iter().map(up).collect(),
            // Scratch memory holds anything at first: here floats that are none.
            scratch: up(&Host { dtype: Dtype::F32, data: vec![f64::NAN; prepared.scratch()] }),
            meta: Buffer { handle: client.create_from_slice(&words), elements: prepared.meta().len() },
        }
    }

    fn args(&self) -> Args<'_> {
        Args { operands: &self.operands, results: &self.results, scratch: Some(&self.scratch), meta: &self.meta }
    }

    fn read(&self, client: &Client, results: &[Host]) -> Vec<Vec<f64>> {
        let one = |(b, h): (&Buffer, &Host)| {
            let read = client.read_one(b.handle.clone()).expect("reads");
            numbers(h.dtype, &read)[..h.data.len()].to_vec()
        };
        self.results.iter().zip(results).map(one).collect()
    }
}
