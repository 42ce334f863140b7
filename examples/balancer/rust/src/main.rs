//! An L4 balancer: takes frames of an interface by AF_XDP, out of memory of the region, and sends them on as
//! the extension `balancer` decides.
//!
//! `balance INTERFACE`

#![expect(unsafe_code, reason = "the frames' memory is the extension's")]

mod frame;

use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use balancer::balancer::Client;
use balancer::flows::{PORT_FIRST, PORTS, client_of, client_word};
use ext_api::error::CallError;
use frame::{End, Frame, Hardware, Packet};
use netio::device::xdp::{CHUNK_LEN, Config, Xdp};
use netio::device::{Checksums, Device};

type Failed = Box<dyn std::error::Error>;

/// Chunks for frames, each way.
const CHUNKS: usize = 2048;
const MEMORY_LEN: usize = 2 * CHUNKS * CHUNK_LEN;
/// How often backends are asked whether they are there.
const ASK_EVERY: Duration = Duration::from_millis(200);
/// One that has not answered for so long is not.
const GONE_AFTER: Duration = Duration::from_secs(1);
/// Frames that are sent before the kernel is told.
const BATCH: usize = 64;

fn main() -> ExitCode {
    let interface = std::env::args_os().nth(1).map(|arg| arg.to_string_lossy().into_owned());
    let Some(interface) = interface else {
        eprintln!("usage: balance INTERFACE");
        return ExitCode::FAILURE;
    };
    let Err(why) = Balancer::open(&interface).and_then(|mut balancer| balancer.run());
    eprintln!("balance: {why}");
    ExitCode::FAILURE
}

struct Backend {
    address: Ipv4Addr,
    /// Once it has answered, and when it last did.
    seen: Option<(Hardware, Duration)>,
}

struct Balancer {
    client: Client,
    device: Xdp,
    ours: End,
    backends: Vec<Backend>,
    start: Instant,
}

impl Balancer {
    fn open(interface: &str) -> Result<Self, Failed> {
        let client = Client::attach()?;
        let at = client.memory(MEMORY_LEN as u64)?;
        let memory = std::ptr::with_exposed_provenance_mut(at as usize);
        // What is sent has whole checksums; those of what comes are not looked at.
        let config = Config { queue: 0, checksums: Checksums::SendOnly };
        // SAFETY: the extension has so many octets there, which stay mapped for as long as this process is in
        // the sandbox.
        let device = unsafe { Xdp::open(interface, memory, MEMORY_LEN, config) }?;
        let service = client.service()?;
        let address = Ipv4Addr::from_bits((service >> 16) as u32);
        let ours = End { hardware: device.hardware(), address, port: service as u16 };
        let mut backends = Vec::new();
        while let Some(address) = client.backend(backends.len() as u64)? {
            let address = Ipv4Addr::from_bits(address as u32);
            backends.push(Backend { address, seen: None });
        }
        let by = if device.is_native() { "its driver" } else { "the kernel" };
        println!("{address}:{} on {interface}, by {by}", ours.port);
        Ok(Self { client, device, ours, backends, start: Instant::now() })
    }

    fn run(&mut self) -> Result<std::convert::Infallible, Failed> {
        let mut buffer = vec![0; self.device.frame_max()];
        let mut ask_at = Duration::ZERO;
        loop {
            let now = self.start.elapsed();
            if now >= ask_at {
                self.ask_backends(now)?;
                ask_at = now + ASK_EVERY;
            }
            for _ in 0..BATCH {
                let Some(len) = self.device.receive(now, &mut buffer) else { break };
                let frame = &mut buffer[..len];
                match self.handle(now, frame) {
                    Ok(true) => self.device.send(now, frame),
                    Ok(false) => {}
                    // The extension restarts, or is upgraded: the frame is lost, as on a busy line.
                    Err(CallError::Refused(_)) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            self.device.flush();
            self.device.wait(Some(ask_at.saturating_sub(now)))?;
        }
    }

    /// Ask who is there, and say who has not answered for long.
    fn ask_backends(&mut self, now: Duration) -> Result<(), Failed> {
        for (index, backend) in self.backends.iter_mut().enumerate() {
            let is_gone = |(_, at): &mut (Hardware, Duration)| now - *at > GONE_AFTER;
            if backend.seen.take_if(is_gone).is_some() {
                self.client.set_up(index as u64, false)?;
            }
            let ours = (self.ours.hardware, self.ours.address);
            self.device.send(now, &frame::arp_frame(ours, (None, backend.address)));
        }
        Ok(())
    }

    /// Do what a frame asks for. True: it is now one to be sent.
    fn handle(&mut self, now: Duration, frame: &mut [u8]) -> Result<bool, CallError> {
        match frame::read(frame) {
            Frame::ArpRequest { asker, wanted } if wanted == self.ours.address => {
                let ours = (self.ours.hardware, self.ours.address);
                self.device.send(now, &frame::arp_frame(ours, (Some(asker.0), asker.1)));
                Ok(false)
            }
            Frame::ArpAnswer { from: (hardware, address) } => {
                if let Some(index) = self.index_of(address) {
                    let is_new = self.backends[index].seen.replace((hardware, now)).is_none();
                    if is_new {
                        self.client.set_up(index as u64, true)?;
                    }
                }
                Ok(false)
            }
            Frame::Packet(packet) if packet.to.0 == self.ours.address => {
                self.packet(frame, &packet)
            }
            Frame::Unreachable { by, port } => {
                if let Some(index) = self.index_of(by) {
                    self.client.refused(port.into(), index as u64)?;
                }
                Ok(false)
            }
            _ => Ok(false),
        }
    }

    fn index_of(&self, address: Ipv4Addr) -> Option<usize> {
        self.backends.iter().position(|backend| backend.address == address)
    }

    fn packet(&self, frame: &mut [u8], packet: &Packet) -> Result<bool, CallError> {
        if packet.to.1 == self.ours.port {
            return self.there(frame, packet);
        }
        let is_flow = (PORT_FIRST..PORT_FIRST + PORTS).contains(&packet.to.1);
        match self.index_of(packet.from.address).filter(|_| is_flow) {
            Some(index) => self.back(frame, packet, index),
            None => Ok(false),
        }
    }

    /// From a client to a backend: as if we were the client.
    fn there(&self, frame: &mut [u8], packet: &Packet) -> Result<bool, CallError> {
        let from = packet.from;
        let client = client_word(from.address, from.port, packet.protocol);
        let hardware = from.hardware.iter().fold(0, |word, octet| word << 8 | u64::from(*octet));
        let Some(way) = self.client.steer(client, hardware, frame.len() as u64)? else {
            return Ok(false);
        };
        let (port, index) = ((way >> 8) as u16, (way & 0xff) as usize);
        let Some(Backend { address, seen: Some((hardware, _)) }) = self.backends.get(index) else {
            return Ok(false);
        };
        let to = End { hardware: *hardware, address: *address, port: self.ours.port };
        frame::rewrite(frame, packet, End { port, ..self.ours }, to);
        Ok(true)
    }

    /// From a backend to the client whose flow it is: as if we were the backend.
    fn back(&self, frame: &mut [u8], packet: &Packet, index: usize) -> Result<bool, CallError> {
        let (port, index) = (u64::from(packet.to.1), index as u64);
        if packet.resets && self.client.refused(port, index)? {
            return Ok(false);
        }
        let Some(client) = self.client.back(port, index, frame.len() as u64)? else {
            return Ok(false);
        };
        let (address, client_port, protocol) = client_of(client);
        if protocol != packet.protocol {
            return Ok(false);
        }
        let [_, _, hardware @ ..] = self.client.hardware(port)?.to_be_bytes();
        let to = End { hardware, address, port: client_port };
        frame::rewrite(frame, packet, self.ours, to);
        Ok(true)
    }
}
