//! Stores: weights and states by name, shared by the programs that use them.

use crate::Error;
use crate::bound::Bound;
use crate::device::Device;
use crate::host::HostTensor;
use crate::window;
use cubecl::prelude::Client;
use cubecl::server::Handle;
use omchat_codegen::Target;
use omchat_ir::{Tensor, Type};
use std::collections::HashMap;
use std::sync::Arc;

/// A weight or a state where its device can reach it; a clone shares the memory.
#[derive(Clone)]
pub enum Stored {
    /// For the interpreter.
    Host(Arc<Tensor>),
    /// On a device.
    Device(Type, Handle),
}

/// Weights and states by name. A clone shares the memory of what is there and has new names to itself.
#[derive(Default)]
pub struct Store {
    held: HashMap<String, Stored>,
    bytes: u64,
    /// Programs bound to what is held, by their ids; gone when anything changes.
    bound: HashMap<u64, Bound>,
}

impl Clone for Store {
    fn clone(&self) -> Store {
        Store { held: self.held.clone(), bytes: self.bytes, bound: HashMap::new() }
    }
}

impl Store {
    /// Uploads a tensor under a name; what was there is dropped. Halves widen to f32 where the device can neither hold
    /// nor pack them.
    pub fn upload(&mut self, device: &Device, name: &str, t: &HostTensor) {
        let stored = match device {
            Device::Interp => Stored::Host(Arc::new(t.to_tensor())),
            Device::Cube { client, target } => {
                let wide;
                let t = if target.reads(t.ty.dtype) || !t.ty.dtype.is_float() {
                    t
                } else {
                    wide = t.widened();
                    &wide
                };
                let _open = window::open();
                Stored::Device(t.ty.clone(), client.create_from_slice(&t.words()))
            }
        };
        self.put(name, stored);
    }

    /// Room for a tensor under a name, for a program to fill; what it holds until then is not said.
    pub fn reserve(&mut self, device: &Device, name: &str, ty: Type) {
        let stored = match device {
            Device::Interp => Stored::Host(Arc::new(HostTensor::zeros(ty).to_tensor())),
            Device::Cube { client, .. } => {
                let _open = window::open();
                let handle = client.empty(ty.bytes().max(1));
                Stored::Device(ty, handle)
            }
        };
        self.put(name, stored);
    }

    /// A state that was uploaded in halves, where the device only reads them: f32 from now on, for it is written.
    ///
    /// Errors: what the device answers.
    pub(crate) fn widen_state(&mut self, client: &Client, target: &Target, name: &str) -> Result<(), Error> {
        let halves = |s: &&Stored| matches!(s, Stored::Device(ty, _) if target.packs(ty.dtype));
        if self.held.get(name).as_ref().is_some_and(halves) {
            let device = Device::Cube { client: client.clone(), target: target.clone() };
            let wide = self.download(&device, name)?.widened();
            self.upload(&device, name, &wide);
        }
        Ok(())
    }

    /// What is stored under a name, read back to the host.
    ///
    /// Errors: `Missing` if nothing is; what the device answers.
    pub fn download(&self, device: &Device, name: &str) -> Result<HostTensor, Error> {
        match (self.held.get(name), device) {
            (Some(Stored::Host(t)), _) => Ok(HostTensor::from_tensor(t)),
            (Some(Stored::Device(ty, handle)), Device::Cube { client, .. }) => {
                let _open = window::open();
                let bytes = client.read_one(handle.clone()).map_err(|e| Error::Device {
                    device: device.name().into(),
                    message: format!("reading `{name}`: {e:?}").chars().take(600).collect(),
                })?;
                Ok(HostTensor { ty: ty.clone(), bytes: bytes[..ty.bytes()].to_vec() })
            }
            _ => Err(Error::Missing {
                name: name.into(),
                entry: "store".into(),
                want: "a tensor put there before".into(),
            }),
        }
    }

    /// Puts what is already where it should be.
    pub fn put(&mut self, name: &str, stored: Stored) {
        let bytes = |s: &Stored| match s {
            Stored::Host(t) => t.ty.bytes() as u64,
            Stored::Device(t, _) => t.bytes() as u64,
        };
        self.bound.clear();
        self.bytes += bytes(&stored);
        if let Some(old) = self.held.insert(name.to_string(), stored) {
            self.bytes -= bytes(&old);
        }
    }

    /// A program's binding to this store, made if there is none.
    pub(crate) fn bound(
        &mut self,
        id: u64,
        bind: impl FnOnce(&mut Store) -> Result<Bound, Error>,
    ) -> Result<&mut Bound, Error> {
        let bound = match self.bound.remove(&id) {
            Some(bound) => bound,
            None => bind(self)?,
        };
        Ok(self.bound.entry(id).or_insert(bound))
    }

    /// What is held under a name.
    pub fn get(&self, name: &str) -> Option<&Stored> {
        self.held.get(name)
    }

    /// Whether a name is there.
    pub fn contains(&self, name: &str) -> bool {
        self.held.contains_key(name)
    }

    /// Bytes held.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn tensor(&self, name: &str) -> Option<&Tensor> {
        match self.held.get(name) {
            Some(Stored::Host(t)) => Some(t),
            _ => None,
        }
    }

    pub(crate) fn handle(&self, name: &str) -> Option<(&Type, &Handle)> {
        match self.held.get(name) {
            Some(Stored::Device(t, h)) => Some((t, h)),
            _ => None,
        }
    }
}
