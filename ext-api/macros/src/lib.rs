//! The `#[extension]` macro of ext-api.
