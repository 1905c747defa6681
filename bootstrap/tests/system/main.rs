//! A bootstrap peer on loopback with real members: what it lets in, what it keeps, what it says of itself.

#[cfg(test)]
mod command;
#[cfg(test)]
mod http;
#[cfg(test)]
mod member;
#[cfg(test)]
mod peer;
