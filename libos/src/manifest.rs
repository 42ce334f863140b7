//! An extension's manifest, read out of its relocated image without running anything.

use std::fmt;

use ext_api::abi::{
    ABI_VERSION, HOOK_CALLS, HOOK_CALLS_AFTER, HOOK_EXEC, HOOK_EXIT, HOOK_FORK, HOOK_PACKET,
    HOOK_SIGNAL, HOOK_START, HOOK_TCP, HOOK_TIMER, HOOK_UDP, HOOKABLE_SIGNALS, INTERFACE_LEN_MAX,
    KILL_SAFE, MANIFEST_MAGIC, MANIFEST_SYMBOL_PREFIX, Manifest,
};
use ext_api::limits::{
    BUDGET_NS_DEFAULT, HANDLER_NAME_LEN_MAX, HANDLERS_MAX, HEAP_LEN_DEFAULT, HUGE_PAGE_LEN,
    NAME_LEN_MAX, SIGNATURE_LEN_MAX, TIMER_NS_MIN,
};

use crate::image::{Image, ImageError};

/// When a handler runs by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Never.
    None,
    /// Again and again.
    Timer {
        /// How often, in nanoseconds.
        period_ns: u64,
    },
    /// A process begins to take part.
    Start,
    /// A participant has forked.
    Fork,
    /// A participant executes another program.
    Exec,
    /// A participant has ended.
    Exit,
    /// A signal has come to the process that it runs in.
    Signal {
        /// Its number.
        number: u64,
    },
    /// The program that it runs in makes a system call.
    Calls {
        /// Bit per number.
        set: [u64; 8],
        /// Once the kernel has carried it out?
        after: bool,
    },
    /// Something has come from the network.
    Network(Port),
}

/// Where something comes from the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Port {
    /// Datagrams to a UDP port; those that other handlers pass if it is 0.
    Udp(u16),
    /// Connections to a TCP port.
    Tcp(u16),
    /// Frames of an interface: its name, padded with zeros. `*` are those that programs bring themselves.
    Interface([u8; INTERFACE_LEN_MAX]),
}

/// The name that no interface has.
const BROUGHT: [u8; INTERFACE_LEN_MAX] = {
    let mut name = [0; INTERFACE_LEN_MAX];
    name[0] = b'*';
    name
};

impl Port {
    /// Do programs bring what its handler is asked about? Then there is nothing to open.
    #[must_use]
    pub fn is_brought(self) -> bool {
        self == Self::Interface(BROUGHT)
    }

    /// The interface in the words of a set.
    fn interface(set: [u64; 8]) -> Option<Self> {
        let mut name = [0; INTERFACE_LEN_MAX];
        let bytes = set.iter().flat_map(|word| word.to_le_bytes());
        name.iter_mut().zip(bytes.clone()).for_each(|(to, byte)| *to = byte);
        let legal = |byte: &u8| byte.is_ascii_graphic() && *byte != b'/';
        let len = name.iter().take_while(|byte| **byte != 0).count();
        let rest = bytes.skip(len).all(|byte| byte == 0);
        (len > 0 && rest && name[..len].iter().all(legal)).then_some(Self::Interface(name))
    }
}

impl fmt::Display for Port {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Udp(0) => to.write_str("udp *"),
            Self::Udp(port) => write!(to, "udp {port}"),
            Self::Tcp(port) => write!(to, "tcp {port}"),
            Self::Interface(name) => {
                write!(to, "packet {}", String::from_utf8_lossy(name).trim_end_matches('\0'))
            }
        }
    }
}

impl Hook {
    /// From a manifest's words.
    fn from_raw(hook: u64, value: u64, set: [u64; 8]) -> Option<Self> {
        Some(match hook {
            0 => Self::None,
            HOOK_TIMER if value >= TIMER_NS_MIN => Self::Timer { period_ns: value },
            HOOK_START => Self::Start,
            HOOK_FORK => Self::Fork,
            HOOK_EXEC => Self::Exec,
            HOOK_EXIT => Self::Exit,
            HOOK_CALLS | HOOK_CALLS_AFTER => {
                let known = ext_api::calls::set("all");
                let unknown = set.iter().zip(known).any(|(asked, known)| asked & !known != 0);
                // One that is hooked to none is for policies, which ask before.
                let after = hook == HOOK_CALLS_AFTER;
                let asked = set != [0; 8] || !after;
                return (!unknown && asked).then_some(Self::Calls { set, after });
            }
            HOOK_UDP => Self::Network(Port::Udp(u16::try_from(value).ok()?)),
            HOOK_TCP if value != 0 => Self::Network(Port::Tcp(u16::try_from(value).ok()?)),
            HOOK_PACKET => Self::Network(Port::interface(set)?),
            HOOK_SIGNAL if signal_name(value).is_some() => Self::Signal { number: value },
            _ => return None,
        })
    }

    /// Numbers that the handler may be given.
    const fn words(self) -> usize {
        match self {
            Self::None => usize::MAX,
            Self::Timer { .. } | Self::Start | Self::Exec => 1,
            Self::Fork => 2,
            Self::Exit => 3,
            Self::Signal { .. } => 4,
            Self::Calls { .. } | Self::Network(_) => 1,
        }
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => to.write_str("when it is called"),
            Self::Timer { period_ns } => {
                write!(to, "every {} ms", *period_ns as f64 / 1_000_000.0)
            }
            Self::Start => to.write_str("when a process starts"),
            Self::Fork => to.write_str("when a process forks"),
            Self::Exec => to.write_str("when a process executes a program"),
            Self::Exit => to.write_str("when a process ends"),
            Self::Calls { set: [0, 0, 0, 0, 0, 0, 0, 0], .. } => {
                to.write_str("where a policy says so")
            }
            Self::Calls { set, after } => {
                let calls = ext_api::calls::HOOKABLE_CALLS.iter();
                let asked = calls.filter(|(_, at, _)| set[*at as usize / 64] >> (at % 64) & 1 == 1);
                let names: Vec<&str> = asked.map(|(name, ..)| *name).collect();
                let when = if *after { "after" } else { "before" };
                write!(to, "{when} the system calls {}", names.join(" "))
            }
            Self::Network(port) => write!(to, "on {port}"),
            Self::Signal { number } => write!(to, "on {}", signal_name(*number).unwrap_or("?")),
        }
    }
}

fn signal_name(number: u64) -> Option<&'static str> {
    HOOKABLE_SIGNALS.iter().find(|(_, known)| *known == number).map(|(name, _)| *name)
}

/// One handler, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handler {
    /// `extension.handler`.
    pub name: String,
    /// Signature text.
    pub signature: String,
    /// Address of its code.
    pub code: u64,
    /// CPU time of one upcall in nanoseconds.
    pub budget_ns: u64,
    /// When it runs by itself.
    pub hook: Hook,
}

/// A manifest, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extension {
    /// Name.
    pub name: String,
    /// Heap, a multiple of a huge page.
    pub heap_len: usize,
    /// CPU time of one upcall in nanoseconds.
    pub budget_ns: u64,
    /// Goes on after an upcall that ended in the middle.
    pub kill_safe: bool,
    /// Address of `init`, or 0.
    pub init: u64,
    /// Address of `save`, or 0.
    pub save: u64,
    /// Address of `upgrade`, or 0.
    pub upgrade: u64,
    /// Version of what `save` writes.
    pub state_version: u64,
    /// Handlers.
    pub handlers: Vec<Handler>,
}

fn bad(what: impl Into<String>) -> ImageError {
    ImageError::Manifest(what.into())
}

/// Read and check the manifest of `image`.
///
/// # Errors
/// [`ImageError::Manifest`], which says what is wrong.
pub fn read(image: &Image) -> Result<Extension, ImageError> {
    let mut found =
        image.exports.iter().filter(|(name, _)| name.starts_with(MANIFEST_SYMBOL_PREFIX));
    let (_, at) = found.next().ok_or_else(|| {
        bad(format!("no symbol {MANIFEST_SYMBOL_PREFIX}*: is this an extension? (#[extension])"))
    })?;
    if found.next().is_some() {
        return Err(bad("several extensions in one image"));
    }
    let field = |offset: usize| {
        let address = at.checked_add(offset as u64);
        address.and_then(|at| image.word_at(at)).ok_or_else(|| bad("it lies outside of the image"))
    };
    if field(core::mem::offset_of!(Manifest, magic))? != MANIFEST_MAGIC {
        return Err(bad("its magic number is wrong"));
    }
    let version = field(core::mem::offset_of!(Manifest, abi_version))? as u32;
    if version != ABI_VERSION {
        return Err(bad(format!(
            "it was built for ABI version {version}; this launcher has {ABI_VERSION}: rebuild the \
             extension with this version's ext-api"
        )));
    }
    let name_at = core::mem::offset_of!(Manifest, name);
    let name = text(image, field(name_at)?, field(name_at + 8)?, NAME_LEN_MAX)?;
    check_name(&name)?;
    let code = |name: &str, offset: usize| match field(offset)? {
        at if at == 0 || image.is_code(at) => Ok(at),
        _ => Err(bad(format!("its {name} is not code"))),
    };
    let init = code("init", core::mem::offset_of!(Manifest, init))?;
    let save = code("save", core::mem::offset_of!(Manifest, save))?;
    let upgrade = code("upgrade", core::mem::offset_of!(Manifest, upgrade))?;
    let heap = field(core::mem::offset_of!(Manifest, heap_len))?;
    let budget = field(core::mem::offset_of!(Manifest, budget_ns))?;
    let budget_ns = if budget == 0 { BUDGET_NS_DEFAULT } else { budget };
    Ok(Extension {
        handlers: handlers(
            image,
            &name,
            [
                field(core::mem::offset_of!(Manifest, handlers))?,
                field(core::mem::offset_of!(Manifest, handler_count))?,
            ],
            budget_ns,
        )?,
        name,
        heap_len: heap_len(heap)?,
        budget_ns,
        kill_safe: field(core::mem::offset_of!(Manifest, flags))? & KILL_SAFE != 0,
        init,
        save,
        upgrade,
        state_version: field(core::mem::offset_of!(Manifest, state_version))?,
    })
}

fn heap_len(asked: u64) -> Result<usize, ImageError> {
    let asked = if asked == 0 { HEAP_LEN_DEFAULT as u64 } else { asked };
    usize::try_from(asked)
        .ok()
        .and_then(|len| len.checked_next_multiple_of(HUGE_PAGE_LEN))
        .filter(|&len| len <= crate::layout::LEN_MAX)
        .ok_or_else(|| bad(format!("a heap of {asked} bytes")))
}

/// Is this a name that a sandbox or an extension may have?
///
/// # Errors
/// [`ImageError::Manifest`] with the rule.
pub fn check_name(name: &str) -> Result<(), ImageError> {
    let legal = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if name.is_empty() || name.len() > NAME_LEN_MAX || !name.chars().all(legal) {
        return Err(bad(format!(
            "the name {name:?}: use 1 to {NAME_LEN_MAX} ASCII letters, digits, '-' and '_'"
        )));
    }
    Ok(())
}

fn text(image: &Image, address: u64, len: u64, len_max: usize) -> Result<String, ImageError> {
    let len = usize::try_from(len).ok().filter(|&len| len <= len_max);
    let len = len.ok_or_else(|| bad(format!("a text longer than {len_max} bytes")))?;
    let bytes = image.bytes_at(address, len).ok_or_else(|| bad("a text outside of the image"))?;
    String::from_utf8(bytes.to_vec()).map_err(|_| bad("a text that is not UTF-8"))
}

/// The set of calls at `address`, if there is one.
fn call_set(image: &Image, address: u64) -> Result<[u64; 8], ImageError> {
    let mut set = [0; 8];
    for (word, at) in set.iter_mut().zip((address..).step_by(8)).filter(|_| address != 0) {
        *word = image.word_at(at).ok_or_else(|| bad("a set of calls outside of the image"))?;
    }
    Ok(set)
}

/// Does a handler take more than `most` arguments, or others than numbers?
fn takes_other_than(signature: &str, most: usize) -> bool {
    let inside = signature.split_once('(').and_then(|(_, rest)| rest.split_once(')'));
    let kinds =
        inside.map_or("", |(inside, _)| inside).split(',').filter_map(|it| it.split_once(':'));
    let kinds: Vec<&str> = kinds.map(|(_, kind)| kind.trim()).collect();
    most != usize::MAX
        && (kinds.len() > most || kinds.iter().any(|it| matches!(*it, "bytes" | "str")))
}

fn handlers(
    image: &Image,
    extension: &str,
    [at, count]: [u64; 2],
    budget_ns: u64,
) -> Result<Vec<Handler>, ImageError> {
    const DECL_LEN: u64 = size_of::<ext_api::abi::HandlerDecl>() as u64;
    if count >= HANDLERS_MAX as u64 {
        return Err(bad(format!("{count} handlers; the table has {HANDLERS_MAX}")));
    }
    let mut handlers: Vec<Handler> = Vec::new();
    for index in 0..count {
        let field = |offset: u64| {
            let address = at.checked_add(index * DECL_LEN + offset);
            address
                .and_then(|at| image.word_at(at))
                .ok_or_else(|| bad("handlers outside of the image"))
        };
        let short = text(image, field(0)?, field(8)?, NAME_LEN_MAX)?;
        check_name(&short)?;
        let handler = Handler {
            name: format!("{extension}.{short}"),
            signature: text(image, field(16)?, field(24)?, SIGNATURE_LEN_MAX)?,
            code: field(32)?,
            budget_ns: match field(40)? {
                0 => budget_ns,
                own => own,
            },
            hook: Hook::from_raw(field(48)?, field(56)?, call_set(image, field(64)?)?)
                .ok_or_else(|| bad(format!("handler {short} runs by itself, but when?")))?,
        };
        if takes_other_than(&handler.signature, handler.hook.words()) {
            let what = format!("handler {}: what runs by itself takes", handler.name);
            return Err(bad(format!("{what} at most {} numbers", handler.hook.words())));
        }
        if matches!(handler.hook, Hook::Signal { .. }) && !handler.signature.ends_with("-> bool") {
            return Err(bad(format!("handler {}: on a signal it returns bool", handler.name)));
        }
        if !image.is_code(handler.code) || handler.name.len() > HANDLER_NAME_LEN_MAX {
            return Err(bad(format!("handler {} is not code", handler.name)));
        }
        if handlers.iter().any(|known| known.name == handler.name) {
            return Err(bad(format!("two handlers named {}", handler.name)));
        }
        handlers.push(handler);
    }
    Ok(handlers)
}
