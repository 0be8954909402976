//! probe
use cubecl::prelude::*;
use crate::bind::*;

#[cube]
pub(crate) fn load<E: Scalar, N: Size>(from: &Box<[E]>, at: usize) -> Vector<E, N> {
    let mut out = Vector::<E, N>::empty();
    #[unroll]
    for i in 0..N::value() {
        out.insert(i, from[at + i]);
    }
    out
}
#[cube]
pub(crate) fn store<E: Scalar, N: Size>(to: &mut Box<[E]>, at: usize, v: Vector<E, N>) {
    #[unroll]
    for i in 0..N::value() {
        to[at + i] = v.extract(i);
    }
}

#[cube(launch_unchecked, create_dummy_kernel)]
pub(crate) fn probe<N: Size>(meta: &[u32], ins: &Buffers, outs: &mut Buffers, #[comptime] which: u32) {
    let n = meta[0] as usize;
    let x = ins.f32s.index(0);
    let y = outs.f32s.index_mut(0);
    let mut i = 0usize;
    while i < n {
        let v = load::<f32, N>(x, i);
        store::<f32, N>(y, i, v * v);
        i += N::value();
    }
}
/// run
pub fn go(c: &Client) {
    let n = 1024usize;
    let x: Vec<f32> = (0..n+1).map(|i| i as f32).collect();
    let b = |h| Buffer { handle: h, elements: n };
    let mut s = Slots::default(); s.slot(0, omchat_ir::Dtype::F32);
    let hx = b(c.create_from_slice(bytemuck::cast_slice(&x)).offset_start(4));
    let hy = b(c.empty(n*4));
    let m = b(c.create_from_slice(bytemuck::cast_slice(&[n as u32])));
    let p = crate::Prepared::new(vec![n as u32], s.clone(), s.clone(), [1,1,1], 1, crate::prepared::runner!(|b| probe, 16, b.meta, b.operands, b.results, 0));
    for _ in 0..3 {
    let t = std::time::Instant::now();
    for _ in 0..1000 { p.launch(c, &Args { operands: &[hx.clone()], results: &[hy.clone()], meta: &m }).unwrap(); if true {let _ = c.flush();} }
    println!("{:?} per launch", t.elapsed() / 1000);
    }
    let out = c.read_one(hy.handle.clone()).unwrap();
    let v: &[f32] = bytemuck::cast_slice(&out);
    println!("{:?}", &v[..4]);
    println!("{}", p.source(crate::Dialect::Wgsl).unwrap_or_else(|e| e));
}
