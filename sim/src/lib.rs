//! The crate root; modules land with their first user.
