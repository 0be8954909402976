fn main() { omchat_kernels::probe::go(&cubecl::Device::cpu().unwrap().client()); }
