//! The `#[extension]` macro of ext-api.

use proc_macro::TokenStream;
use proc_macro2::{Ident, Span, TokenStream as Tokens};
use quote::{format_ident, quote};
use syn::parse::{Parse, ParseStream};
use syn::{
    Error, FnArg, GenericArgument, Item, ItemFn, ItemMod, LitStr, Pat, PathArguments, Result,
    ReturnType, Token, Type, parse_quote,
};

/// Makes an inline module an extension: see the crate documentation of `ext-api`.
///
/// `name` is required; `heap` (bytes, with K, M or G) and `budget` (with `ms` or `s`) are not.
/// `kill_safe` promises that every handler changes nothing but structures of `ext_api::shared`: the
/// extension is then not restarted when an upcall is killed or ends in a fault.
#[proc_macro_attribute]
pub fn extension(args: TokenStream, item: TokenStream) -> TokenStream {
    let args = syn::parse_macro_input!(args as Args);
    let module = syn::parse_macro_input!(item as ItemMod);
    expand(&args, module).unwrap_or_else(|error| error.to_compile_error()).into()
}

struct Args {
    name: LitStr,
    heap: u64,
    budget_ns: u64,
    kill_safe: bool,
}

impl Parse for Args {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let (mut name, mut heap, mut budget_ns, mut kill_safe) = (None, 0, 0, false);
        while !input.is_empty() {
            let key: Ident = input.parse()?;
            if key == "kill_safe" {
                kill_safe = true;
                if !input.is_empty() {
                    input.parse::<Token![,]>()?;
                }
                continue;
            }
            input.parse::<Token![=]>()?;
            let value: LitStr = input.parse()?;
            match key.to_string().as_str() {
                "name" => name = Some(value),
                "heap" => heap = scaled(&value, &[("K", 1 << 10), ("M", 1 << 20), ("G", 1 << 30)])?,
                "budget" => budget_ns = nanoseconds(&value)?,
                _ => {
                    return Err(Error::new(key.span(), "expected name, heap, budget or kill_safe"));
                }
            }
            if !input.is_empty() {
                input.parse::<Token![,]>()?;
            }
        }
        let name = name.ok_or_else(|| input.error("an extension needs name = \"...\""))?;
        let text = name.value();
        let legal = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if text.is_empty() || text.len() > 31 || !text.chars().all(legal) {
            let rule = "a name is 1 to 31 ASCII letters, digits and '_'";
            return Err(Error::new(name.span(), rule));
        }
        Ok(Self { name, heap, budget_ns, kill_safe })
    }
}

fn scaled(text: &LitStr, units: &[(&str, u64)]) -> Result<u64> {
    let value = text.value();
    let (digits, factor) = units
        .iter()
        .find_map(|&(unit, factor)| Some((value.strip_suffix(unit)?, factor)))
        .unwrap_or((&value, 1));
    let number = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(factor));
    number.ok_or_else(|| Error::new(text.span(), "expected a number with an optional unit"))
}

fn take_attribute(function: &mut ItemFn, name: &str) -> bool {
    let before = function.attrs.len();
    function.attrs.retain(|attribute| !attribute.path().is_ident(name));
    function.attrs.len() != before
}

/// `#[handler(budget = "50ms")]`: nanoseconds, or 0 for the extension's.
fn handler_budget(function: &ItemFn) -> Result<u64> {
    let Some(attribute) = function.attrs.iter().find(|a| a.path().is_ident("handler")) else {
        return Ok(0);
    };
    let mut budget_ns = 0;
    if matches!(attribute.meta, syn::Meta::List(_)) {
        attribute.parse_nested_meta(|meta| {
            if !meta.path.is_ident("budget") {
                return Err(meta.error("expected budget = \"...\""));
            }
            budget_ns = nanoseconds(&meta.value()?.parse()?)?;
            Ok(())
        })?;
    }
    Ok(budget_ns)
}

/// `#[on(timer = "1s")]`, `#[on(process = "exit")]`, `#[on(signal = "SIGTERM")]`: the manifest's words.
fn hook_of(function: &ItemFn) -> Result<(u64, Tokens)> {
    let mut hook = (0, quote!(0));
    let Some(attribute) = function.attrs.iter().find(|a| a.path().is_ident("on")) else {
        return Ok(hook);
    };
    attribute.parse_nested_meta(|meta| {
        let rule = "expected timer = \"...\", process = \"start\", \"fork\", \"exec\" or \"exit\", \
                    signal = \"SIG...\", syscall or syscall_exit = \"openat ...\", udp or tcp = \
                    PORT or \"*\", or packet = \"INTERFACE\" or \"*\"";
        if let Some(kind) =
            [("udp", UDP), ("tcp", TCP)].iter().find(|(it, _)| meta.path.is_ident(it))
        {
            let (at, port) = (meta.path.clone(), port(meta.value()?)?);
            if port == 0 && kind.0 == "tcp" {
                return Err(Error::new_spanned(at, "a connection has one handler: give its port"));
            }
            hook = (kind.1, quote!(#port));
            return Ok(());
        }
        let value: LitStr = meta.value()?.parse()?;
        let process =
            |text: &str| ["start", "exec", "exit"].iter().position(|known| *known == text);
        let fork = meta.path.is_ident("process") && value.value() == "fork";
        hook = if meta.path.is_ident("timer") {
            let period = nanoseconds(&value)?;
            if period < 1_000_000 {
                return Err(Error::new(value.span(), "the shortest period is 1ms"));
            }
            (1, quote!(#period))
        } else if meta.path.is_ident("syscall") || meta.path.is_ident("syscall_exit") {
            let hook = if meta.path.is_ident("syscall") { CALLS } else { CALLS_AFTER };
            (hook, quote!(const { ::ext_api::calls::set(#value) }))
        } else if meta.path.is_ident("packet") {
            (PACKET, quote!(const { ::ext_api::abi::interface_set(#value) }))
        } else if fork {
            (6, quote!(0))
        } else if meta.path.is_ident("signal") {
            let is_bool = matches!(&function.sig.output, ReturnType::Type(_, it)
                if quote!(#it).to_string() == "bool");
            if !is_bool {
                let rule = "what is hooked to a signal returns bool: is the program not to see it?";
                return Err(Error::new(function.sig.ident.span(), rule));
            }
            (5, quote!(const { ::ext_api::abi::signal_number(#value) }))
        } else if let (true, Some(at)) = (meta.path.is_ident("process"), process(&value.value())) {
            (2 + at as u64, quote!(0))
        } else {
            return Err(meta.error(rule));
        };
        Ok(())
    })?;
    Ok(hook)
}

/// A port, or 0 for `"*"`.
fn port(input: ParseStream<'_>) -> Result<u64> {
    if input.peek(LitStr) {
        let text: LitStr = input.parse()?;
        return match text.value().as_str() {
            "*" => Ok(0),
            _ => Err(Error::new(text.span(), "expected a port, or \"*\" for what others pass")),
        };
    }
    let number: syn::LitInt = input.parse()?;
    match number.base10_parse::<u16>()? {
        0 => Err(Error::new(number.span(), "there is no port 0")),
        port => Ok(u64::from(port)),
    }
}

/// `#[save(version = 2)]`: 1 if it does not say.
fn save_version(function: &ItemFn) -> Result<u64> {
    let mut version = 1;
    let attribute = function.attrs.iter().find(|a| a.path().is_ident("save"));
    if let Some(attribute) = attribute
        && matches!(attribute.meta, syn::Meta::List(_))
    {
        attribute.parse_nested_meta(|meta| {
            if !meta.path.is_ident("version") {
                return Err(meta.error("expected version = NUMBER"));
            }
            version = u64::from(meta.value()?.parse::<syn::LitInt>()?.base10_parse::<u32>()?);
            Ok(())
        })?;
    }
    Ok(version)
}

fn nanoseconds(text: &LitStr) -> Result<u64> {
    scaled(text, &[("ms", 1_000_000), ("s", 1_000_000_000)])
}

/// One parameter of a handler, beside the state and the output.
struct Parameter {
    name: Ident,
    kind: Type,
}

struct Handler {
    name: Ident,
    state: bool,
    parameters: Vec<Parameter>,
    out: bool,
    returns: Type,
    budget_ns: u64,
    hook: (u64, Tokens),
    docs: Vec<syn::Attribute>,
}

fn expand(args: &Args, mut module: ItemMod) -> Result<Tokens> {
    let Some((_, items)) = &mut module.content else {
        return Err(Error::new(module.ident.span(), "an extension is an inline module"));
    };
    let (mut handlers, mut init) = (Vec::new(), None);
    let (mut save, mut upgrade) = (None, None);
    for item in items.iter_mut() {
        let Item::Fn(function) = item else { continue };
        let version = save_version(function)?;
        if take_attribute(function, "save") {
            let saver = handler_of(function)?;
            if !saver.parameters.is_empty() {
                let rule = "expected fn save(state: &State) -> Vec<u8>";
                return Err(Error::new(function.sig.ident.span(), rule));
            }
            save = Some((saver, version));
        }
        if take_attribute(function, "upgrade") {
            if function.sig.inputs.len() != 3 {
                let rule = "expected fn upgrade(cx: &Cx, config: Config, old: Saved<'_>) -> Result<State, E>";
                return Err(Error::new(function.sig.ident.span(), rule));
            }
            upgrade = Some(function.sig.ident.clone());
        }
        if take_attribute(function, "init") {
            init = Some(init_of(function)?);
        }
        let budget_ns = handler_budget(function)?;
        let hook = hook_of(function)?;
        if take_attribute(function, "handler") | take_attribute(function, "on") {
            let handler = Handler { budget_ns, hook, ..handler_of(function)? };
            if handler.takes_block() && !(handler.out && handler.parameters.is_empty()) {
                let rule = match handler.hook.0 {
                    TCP => "expected fn(state: &State, stream: &mut Stream<'_>) -> Verdict",
                    UDP | PACKET => {
                        "expected fn(state: &State, packet: &mut Packet<'_>) -> Verdict"
                    }
                    _ => "expected fn(state: &State, call: &mut Call) -> Verdict",
                };
                return Err(Error::new(function.sig.ident.span(), rule));
            }
            handlers.push(handler);
        }
    }
    let state = init.as_ref().map(|init| init.state.clone());
    let wrappers = handlers.iter().map(wrapper);
    let init_wrapper = init_wrapper(args, init.as_ref());
    let save_wrapper = save.as_ref().map(|(saver, _)| wrapper(saver));
    let upgrade_wrapper = upgrade.as_ref().map(|name| upgrade_wrapper(args, name));
    let state_static = state.map(|state| {
        quote! { static __SBX_STATE: ::std::sync::OnceLock<#state> = ::std::sync::OnceLock::new(); }
    });
    let manifest = manifest(args, &handlers, save.as_ref(), upgrade.is_some());
    let client = client(args, &handlers);
    let generated: syn::File = parse_quote! {
        #state_static
        #(#wrappers)*
        #init_wrapper
        #save_wrapper
        #upgrade_wrapper
        #manifest
        #client
    };
    items.extend(generated.items);
    Ok(quote! { #module })
}

struct Init {
    state: Type,
    name: Ident,
    takes_cx: bool,
    takes_config: bool,
}

fn init_of(function: &ItemFn) -> Result<Init> {
    let bad = || {
        Error::new(
            function.sig.ident.span(),
            "expected fn init(cx: &Cx, config: Config) -> Result<State, E>",
        )
    };
    let ReturnType::Type(_, returns) = &function.sig.output else { return Err(bad()) };
    let Type::Path(path) = &**returns else { return Err(bad()) };
    let last = path.path.segments.last().ok_or_else(bad)?;
    let PathArguments::AngleBracketed(generic) = &last.arguments else { return Err(bad()) };
    let Some(GenericArgument::Type(state)) = generic.args.first() else { return Err(bad()) };
    let count = function.sig.inputs.len();
    if count > 2 || last.ident != "Result" {
        return Err(bad());
    }
    let first_is_reference = matches!(function.sig.inputs.first(),
        Some(FnArg::Typed(first)) if matches!(&*first.ty, Type::Reference(_)));
    Ok(Init {
        state: state.clone(),
        name: function.sig.ident.clone(),
        takes_cx: first_is_reference,
        takes_config: count == 2 || (count == 1 && !first_is_reference),
    })
}

fn handler_of(function: &ItemFn) -> Result<Handler> {
    let sig = &function.sig;
    if sig.asyncness.is_some() || !sig.generics.params.is_empty() {
        return Err(Error::new(sig.ident.span(), "a handler is a plain function"));
    }
    let (mut state, mut out, mut parameters) = (false, false, Vec::new());
    for (index, input) in sig.inputs.iter().enumerate() {
        let FnArg::Typed(input) = input else {
            return Err(Error::new(sig.ident.span(), "a handler takes no self"));
        };
        match &*input.ty {
            Type::Reference(reference) if reference.mutability.is_some() => {
                if index + 1 != sig.inputs.len() {
                    let rule = "the output (&mut Out<'_>) is the last parameter";
                    return Err(Error::new(sig.ident.span(), rule));
                }
                out = true;
            }
            kind if signature_word(kind).is_some() => {
                let name = match &*input.pat {
                    Pat::Ident(name) => name.ident.clone(),
                    _ => format_ident!("arg{index}"),
                };
                parameters.push(Parameter { name, kind: kind.clone() });
            }
            Type::Reference(_) if index == 0 => state = true,
            _ => {
                return Err(Error::new(
                    sig.ident.span(),
                    "a parameter is &[u8], &str, an integer, f64 or bool, after the state (&State)",
                ));
            }
        }
    }
    let returns = match &sig.output {
        ReturnType::Default => parse_quote!(()),
        ReturnType::Type(_, kind) => (**kind).clone(),
    };
    let docs = function
        .attrs
        .iter()
        .filter(|attribute| attribute.path().is_ident("doc"))
        .cloned()
        .collect();
    let (name, budget_ns, hook) = (sig.ident.clone(), 0, (0, quote!(0)));
    Ok(Handler { name, state, parameters, out, returns, budget_ns, hook, docs })
}

/// The signature's word for a parameter type.
fn signature_word(kind: &Type) -> Option<&'static str> {
    match kind {
        Type::Reference(reference) => match &*reference.elem {
            Type::Slice(_) => Some("bytes"),
            Type::Path(path) if path.path.is_ident("str") => Some("str"),
            _ => None,
        },
        Type::Path(path) => match path.path.get_ident()?.to_string().as_str() {
            "u8" | "u16" | "u32" | "u64" | "usize" => Some("u64"),
            "i8" | "i16" | "i32" | "i64" | "isize" => Some("i64"),
            "f64" => Some("f64"),
            "bool" => Some("bool"),
            _ => None,
        },
        _ => None,
    }
}

/// The signature's text for a return type.
fn return_word(kind: &Type, out: bool) -> String {
    let Type::Path(path) = kind else { return if out { "bytes".into() } else { String::new() } };
    let Some(last) = path.path.segments.last() else { return String::new() };
    let inner = match &last.arguments {
        PathArguments::AngleBracketed(generic) => match generic.args.first() {
            Some(GenericArgument::Type(inner)) => Some(inner),
            _ => None,
        },
        _ => None,
    };
    match (last.ident.to_string().as_str(), inner) {
        ("Vec", _) => "bytes".into(),
        ("String", _) => "str".into(),
        ("Option", Some(inner)) => format!("option<{}>", return_word(inner, out)),
        ("Result", Some(inner)) => format!("result<{}>", return_word(inner, out)),
        _ if out => "bytes".into(),
        _ => signature_word(kind).unwrap_or("").to_owned(),
    }
}

/// `HOOK_CALLS` and its like.
const CALLS: u64 = 7;
const CALLS_AFTER: u64 = 8;
const UDP: u64 = 9;
const TCP: u64 = 10;
const PACKET: u64 = 11;

impl Handler {
    fn is_on_calls(&self) -> bool {
        matches!(self.hook.0, CALLS | CALLS_AFTER)
    }

    fn is_on_network(&self) -> bool {
        matches!(self.hook.0, UDP | TCP | PACKET)
    }

    /// Is it given a block of libos's or the worker's, which others cannot call it with?
    fn takes_block(&self) -> bool {
        self.is_on_calls() || self.is_on_network()
    }

    /// Has its hook a set beside the value?
    fn has_set(&self) -> bool {
        self.is_on_calls() || self.hook.0 == PACKET
    }
}

fn signature(handler: &Handler) -> String {
    if handler.is_on_calls() {
        return "(call: call) -> verdict".to_owned();
    }
    if handler.is_on_network() {
        // By the first word a program that shows frames tells their handlers from others.
        let what = if handler.hook.0 == PACKET { "frame" } else { "packet" };
        return format!("({what}: packet) -> verdict");
    }
    let parameters: Vec<String> = handler
        .parameters
        .iter()
        .map(|p| format!("{}: {}", p.name, signature_word(&p.kind).unwrap_or("u64")))
        .collect();
    let returns = return_word(&handler.returns, handler.out);
    let arrow = if returns.is_empty() { String::new() } else { format!(" -> {returns}") };
    format!("({}){arrow}", parameters.join(", "))
}

fn wrapper_name(handler: &Handler) -> Ident {
    format_ident!("__sbx_{}", handler.name)
}

fn wrapper(handler: &Handler) -> Tokens {
    let (wrapper, name) = (wrapper_name(handler), &handler.name);
    let names: Vec<&Ident> = handler.parameters.iter().map(|p| &p.name).collect();
    let state = handler.state.then(|| {
        quote! { __SBX_STATE.get().ok_or(::ext_api::abi::Status::Stale)?, }
    });
    let out = handler.out.then(|| quote! { &mut ::ext_api::extension::Out::new(__reply) });
    let body = if handler.is_on_network() {
        let state_first = state.map(|state| quote! { let (__state,) = (#state); });
        let pass = handler.state.then(|| quote! { __state, });
        let view = format_ident!("{}", if handler.hook.0 == TCP { "Stream" } else { "Packet" });
        quote! {
            #state_first
            let __handler = |__view: &mut ::ext_api::net::#view<'_>| #name(#pass __view);
            Ok(::ext_api::net::#view::with(__args.read(), __reply, __handler))
        }
    } else if handler.is_on_calls() {
        quote! {
            let __call = ::ext_api::calls::Call::from_word(__args.read());
            let __verdict = #name(#state __call);
            let __word = __call.decide(__verdict);
            Ok(::ext_api::wire::Ret::put(__word, __reply))
        }
    } else {
        quote! {
            let mut __words = ::ext_api::wire::Words::new(__args);
            let _ = &mut __words;
            #(let #names = ::ext_api::wire::Arg::take(&mut __words)?;)*
            let __result = #name(#state #(#names,)* #out);
            Ok(::ext_api::wire::Ret::put(__result, __reply))
        }
    };
    quote! {
        #[doc(hidden)]
        unsafe extern "C" fn #wrapper(
            __args: *const u64,
            __reply: *mut ::ext_api::abi::Reply,
        ) -> u32 {
            // SAFETY: the gate hands on what the caller promises, which is words and a reply that fit; libos
            // and the network's worker hand on a block that they have made for this upcall.
            unsafe { ::ext_api::extension::run(__reply, |__reply| { #body }) }
        }
    }
}

fn init_wrapper(args: &Args, init: Option<&Init>) -> Tokens {
    let name = &args.name;
    let body = match init {
        None => quote! { |_, config| config.finish() },
        Some(Init { name, takes_cx, takes_config, .. }) => {
            let cx = takes_cx.then(|| quote! { cx, });
            let argument = takes_config.then(|| quote! { config.clone() });
            quote! {
                |cx, config| -> ::std::result::Result<(), ::std::string::String> {
                    let _ = cx;
                    let state = #name(#cx #argument).map_err(|error| error.to_string())?;
                    config.finish().map_err(|error| error.to_string())?;
                    __SBX_STATE
                        .set(state)
                        .map_err(|_| ::std::string::String::from("init ran twice"))
                }
            }
        }
    };
    quote! {
        #[doc(hidden)]
        unsafe extern "C" fn __sbx_init(
            config: *const u8,
            config_len: usize,
            runtime: *const ::ext_api::abi::Runtime,
            reply: *mut ::ext_api::abi::Reply,
        ) -> u32 {
            // SAFETY: libos calls this as `InitFn` says.
            unsafe {
                ::ext_api::extension::run_init((config, config_len), runtime, reply, #name, #body)
            }
        }
    }
}

fn upgrade_wrapper(args: &Args, upgrade: &Ident) -> Tokens {
    let name = &args.name;
    quote! {
        #[doc(hidden)]
        unsafe extern "C" fn __sbx_upgrade(
            config: *const u8,
            config_len: usize,
            runtime: *const ::ext_api::abi::Runtime,
            version: u64,
            saved: *const u8,
            saved_len: usize,
            reply: *mut ::ext_api::abi::Reply,
        ) -> u32 {
            // SAFETY: libos calls this as `UpgradeFn` says.
            let saved = unsafe { ::ext_api::extension::Saved::new(version, saved, saved_len) };
            let body = |cx: &_, config: ::ext_api::config::Config|
                -> ::std::result::Result<(), ::std::string::String> {
                let state = #upgrade(cx, config.clone(), saved).map_err(|error| error.to_string())?;
                config.finish().map_err(|error| error.to_string())?;
                __SBX_STATE
                    .set(state)
                    .map_err(|_| ::std::string::String::from("upgrade ran twice"))
            };
            // SAFETY: as above.
            unsafe {
                ::ext_api::extension::run_init((config, config_len), runtime, reply, #name, body)
            }
        }
    }
}

fn manifest(
    args: &Args,
    handlers: &[Handler],
    save: Option<&(Handler, u64)>,
    upgrades: bool,
) -> Tokens {
    let saver = save.map_or(quote! { None }, |(saver, _)| {
        let name = wrapper_name(saver);
        quote! { Some(#name) }
    });
    let version = save.map_or(0, |(_, version)| *version);
    let upgrade = if upgrades {
        quote! { Some(__sbx_upgrade) }
    } else {
        quote! { None }
    };
    let name = &args.name;
    let symbol = LitStr::new(&format!("SBX_EXTENSION_{}", name.value()), Span::call_site());
    let count = handlers.len();
    let (heap, budget, flags) = (args.heap, args.budget_ns, u64::from(args.kill_safe));
    let rows = handlers.iter().map(|handler| {
        let (name, code) = (handler.name.to_string(), wrapper_name(handler));
        let signature = signature(handler);
        let (budget, (hook, hook_value)) = (handler.budget_ns, &handler.hook);
        let set = handler.has_set().then(|| quote!({ static SET: [u64; 8] = #hook_value; &SET }));
        let set = set.unwrap_or_else(|| quote!(::core::ptr::null()));
        let hook_value = if handler.has_set() { &quote!(0) } else { hook_value };
        quote! {
            ::ext_api::abi::HandlerDecl {
                name: ::ext_api::abi::Text::new(#name),
                signature: ::ext_api::abi::Text::new(#signature),
                code: #code,
                budget_ns: #budget,
                hook: #hook,
                hook_value: #hook_value,
                hook_set: #set,
            }
        }
    });
    quote! {
        static __SBX_HANDLERS: [::ext_api::abi::HandlerDecl; #count] = [#(#rows),*];

        #[doc(hidden)]
        #[unsafe(export_name = #symbol)]
        pub static __SBX_MANIFEST: ::ext_api::abi::Manifest = ::ext_api::abi::Manifest {
            magic: ::ext_api::abi::MANIFEST_MAGIC,
            abi_version: ::ext_api::abi::ABI_VERSION,
            size: ::std::mem::size_of::<::ext_api::abi::Manifest>() as u32,
            name: ::ext_api::abi::Text::new(#name),
            heap_len: #heap,
            budget_ns: #budget,
            init: Some(__sbx_init),
            handlers: &raw const __SBX_HANDLERS as *const ::ext_api::abi::HandlerDecl,
            handler_count: #count,
            flags: #flags,
            save: #saver,
            upgrade: #upgrade,
            state_version: #version,
        };
    }
}

fn client(args: &Args, handlers: &[Handler]) -> Tokens {
    // Those that are given a block are libos's and the worker's alone to call.
    let handlers: Vec<&Handler> =
        handlers.iter().filter(|handler| !handler.takes_block()).collect();
    let count = handlers.len();
    let names = handlers.iter().map(|handler| {
        LitStr::new(&format!("{}.{}", args.name.value(), handler.name), Span::call_site())
    });
    let methods = handlers.iter().enumerate().map(|(index, handler)| {
        let Handler { name, docs, returns, .. } = handler;
        let parameters = handler.parameters.iter().map(|Parameter { name, kind }| quote! { #name: #kind });
        let gives = handler.parameters.iter().map(|Parameter { name, .. }| {
            quote! { __at += ::ext_api::wire::Arg::give(#name, &mut __words[__at..]); }
        });
        let words = handler.parameters.len() * 2;
        let (into, call) = if handler.out {
            (
                quote! { into: &mut ::std::vec::Vec<u8>, },
                quote! { invoke_into::<#returns>(self.handles[#index], &__words[..__at], into) },
            )
        } else {
            (quote! {}, quote! { invoke::<#returns>(self.handles[#index], &__words[..__at]) })
        };
        quote! {
            #(#docs)*
            #[inline]
            pub fn #name(
                &self, #(#parameters,)* #into
            ) -> ::std::result::Result<<#returns as ::ext_api::wire::Ret>::Value, ::ext_api::error::CallError> {
                #[allow(unused_mut, reason = "a handler without arguments fills no words")]
                let (mut __words, mut __at) = ([0u64; #words], 0usize);
                #(#gives)*
                self.sandbox.#call
            }
        }
    });
    quote! {
        /// Calls the handlers of this extension in the sandbox that the program runs in.
        #[derive(Debug, Clone, Copy)]
        pub struct Client {
            sandbox: ::ext_api::client::Sandbox,
            handles: [u64; #count],
        }

        impl Client {
            /// The extension in the sandbox of this process.
            ///
            /// # Errors
            /// The process is in no sandbox, or the extension is not loaded.
            pub fn attach() -> ::std::result::Result<Self, ::ext_api::error::CallError> {
                let sandbox = ::ext_api::client::Sandbox::current()?;
                Ok(Self { sandbox, handles: [#(sandbox.find(#names)?),*] })
            }

            #(#methods)*
        }
    }
}
