//! Two hosts on one machine: network namespaces with a wire between them, each with an address and a name of its own.
#![allow(dead_code, clippy::unwrap_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::process::{Command, id};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Where each host is reached. Only the two see these addresses, so that two runs may have the same.
pub const ADDRESSES: [&str; 2] = ["10.77.0.1", "10.77.0.2"];

/// What a host's processes begin with: they see it under its own name.
const NAMED: [&str; 4] = ["unshare", "--uts", "sh", "-c"];

/// Namespaces are called after the process that made them.
const PREFIX: &str = "omchat-";

/// Both are gone with it, and all that runs on them.
pub struct Hosts {
    names: [String; 2],
    folder: PathBuf,
}

impl Hosts {
    /// Two hosts, with a folder for what one of them needs to reach the other. Says so where this machine makes none.
    pub fn two(what: &str, folder: &str) -> Option<Hosts> {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let own = format!("{PREFIX}{}-{}", id(), MADE.fetch_add(1, Ordering::SeqCst));
        let hosts = Hosts { names: ["a", "b"].map(|h| format!("{own}-{h}")), folder: Path::new(folder).join(own) };
        sweep();
        match hosts.make() {
            Ok(()) => Some(hosts),
            Err(why) => {
                println!("skipped: {what} on two hosts ({why})");
                None
            }
        }
    }

    fn make(&self) -> Result<(), String> {
        let [a, b] = &self.names;
        ip(&["netns", "add", a])?;
        ip(&["netns", "add", b])?;
        ip(&["-n", a, "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", b])?;
        for (name, address) in self.names.iter().zip(ADDRESSES) {
            ip(&["-n", name, "address", "add", &format!("{address}/24"), "dev", "wire"])?;
            ip(&["-n", name, "link", "set", "lo", "up"])?;
            ip(&["-n", name, "link", "set", "wire", "up"])?;
        }
        self.names.iter().try_for_each(|name| ready(name))?;
        self.on(1, "true").output().map_err(|e| e.to_string()).and_then(|o| match o.status.success() {
            true => Ok(()),
            false => Err(String::from_utf8_lossy(&o.stderr).trim().into()),
        })
    }

    /// A program on a host, not started yet. What is started is the program itself: its process can be told and killed.
    pub fn on(&self, host: usize, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.names[host]]).args(NAMED).arg("hostname \"$0\"; exec \"$@\"");
        command.args([&self.names[host], program]);
        command
    }

    /// A program that takes `ssh`'s place between the hosts: options, an address, and a command line for a shell.
    pub fn agent(&self) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        std::fs::create_dir_all(&self.folder).unwrap();
        let path = self.folder.join("agent");
        let [a, b] = &self.names;
        let text = format!(
            "#!/bin/sh\nwhile [ \"${{1#-}}\" != \"$1\" ]; do shift; done\n\
             case $1 in {}) host={a} ;; *) host={b} ;; esac\nshift\n\
             exec ip netns exec $host {} 'hostname \"$0\"; eval \"$*\"' $host \"$@\"\n",
            ADDRESSES[0],
            NAMED.join(" ")
        );
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// Cuts the wire, or mends it.
    pub fn wire(&self, whole: bool) {
        ip(&["-n", &self.names[1], "link", "set", "wire", if whole { "up" } else { "down" }]).unwrap();
    }

    /// Kills all that runs on a host.
    pub fn clear(&self, host: usize) {
        clear(&self.names[host]);
    }

    /// Has all that leaves either host come 5 ms later, or else, where the kernel cannot, at 200 Mbit/s. Yields which.
    pub fn slow(&self) -> Result<&'static str, String> {
        let late = ["netem", "delay", "5ms"];
        let narrow = ["tbf", "rate", "200mbit", "burst", "64kb", "latency", "50ms"];
        let all = |how: &[&str]| {
            let on = |name: &String| {
                run("ip", &[&["netns", "exec", name, "tc", "qdisc", "replace", "dev", "wire", "root"], how].concat())
            };
            self.names.iter().try_for_each(on)
        };
        match all(&late) {
            Ok(()) => Ok("5 ms late"),
            Err(_) => all(&narrow).map(|()| "at 200 Mbit/s"),
        }
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        self.names.iter().for_each(|name| remove(name));
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Waits until a host sees its end of the wire up, which Linux says up to a second late: some carriers leave it out before.
fn ready(name: &str) -> Result<(), String> {
    let begun = Instant::now();
    loop {
        let seen = Command::new("ip").args(["-n", name, "link", "show", "wire"]).output().map_err(|e| e.to_string())?;
        if String::from_utf8_lossy(&seen.stdout).contains("state UP") {
            return Ok(());
        }
        if begun.elapsed() > Duration::from_secs(10) {
            return Err(format!("the wire of {name} is not up after 10 s"));
        }
        sleep(Duration::from_millis(10));
    }
}

fn ip(args: &[&str]) -> Result<(), String> {
    run("ip", args)
}

fn run(program: &str, args: &[&str]) -> Result<(), String> {
    let line = || format!("{program} {}", args.join(" "));
    let done = Command::new(program).args(args).output().map_err(|e| format!("{}: {e}", line()))?;
    let said = String::from_utf8_lossy(&done.stderr);
    if done.status.success() { Ok(()) } else { Err(format!("{}: {}", line(), said.trim())) }
}

fn clear(name: &str) {
    let pids = Command::new("ip").args(["netns", "pids", name]).output().map(|o| o.stdout).unwrap_or_default();
    let pids = String::from_utf8_lossy(&pids);
    let pids: Vec<&str> = pids.split_whitespace().collect();
    if !pids.is_empty() {
        let _ = Command::new("kill").arg("-KILL").args(pids).output();
    }
}

/// Removes a host, and what runs on it.
fn remove(name: &str) {
    clear(name);
    let _ = ip(&["netns", "del", name]);
}

/// Removes what killed processes left.
fn sweep() {
    for entry in std::fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(pid) = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()) else { continue };
        if pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists() {
            remove(&name);
        }
    }
}
