//! The bearer token of the local API: a secret that whoever can read the data folder has.

use std::fmt;

use crate::paths::{self, DataDir, PathError};

/// How much randomness a token has, in bytes.
const TOKEN_BYTES: usize = 32;

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file cannot be read or written.
    #[error(transparent)]
    File(#[from] PathError),
    /// The operating system gave no randomness.
    #[error("the operating system gave no random bytes")]
    Random(#[source] getrandom::Error),
    /// The file does not hold a token.
    #[error("{} holds no token; remove it, and `hyperfabric init` makes another", path.display())]
    Malformed {
        /// The file.
        path: std::path::PathBuf,
    },
}

/// A bearer token.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// Draws a token.
    ///
    /// # Errors
    /// [`TokenError::Random`] when the operating system gives no random bytes.
    pub fn generate() -> Result<Self, TokenError> {
        let mut bytes = [0; TOKEN_BYTES];
        getrandom::fill(&mut bytes).map_err(TokenError::Random)?;
        Ok(Self(bytes.iter().map(|byte| format!("{byte:02x}")).collect()))
    }

    /// Reads the token of a data folder; `None` when it has none yet.
    ///
    /// # Errors
    /// [`TokenError`] when the file cannot be read or is not what this program wrote.
    pub fn read(data_dir: &DataDir) -> Result<Option<Self>, TokenError> {
        let path = data_dir.api_token();
        let Some(content) = paths::read_bounded(&path)? else {
            return Ok(None);
        };
        let text = String::from_utf8(content).unwrap_or_default();
        let text = text.trim_end();
        // A shorter one would be easier to guess than it seems, and an empty one would let everybody in.
        if text.len() < TOKEN_BYTES || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(TokenError::Malformed { path });
        }
        Ok(Some(Self(text.to_owned())))
    }

    /// Reads the token of a data folder, or makes one if it has none.
    ///
    /// # Errors
    /// [`TokenError`] when it can be neither read nor made.
    pub fn read_or_create(data_dir: &DataDir) -> Result<Self, TokenError> {
        if let Some(token) = Self::read(data_dir)? {
            return Ok(token);
        }
        let token = Self::generate()?;
        paths::replace_file(&data_dir.api_token(), format!("{}\n", token.0).as_bytes())?;
        Ok(token)
    }

    /// Returns the value of an `Authorization` header that shows the token.
    #[must_use]
    pub fn authorization(&self) -> String {
        format!("Bearer {}", self.0)
    }

    /// Compares in a time that does not depend on where the two differ.
    #[must_use]
    pub fn matches(&self, shown: &str) -> bool {
        // The comparison of two BLAKE3 hashes takes constant time, and hashing hides the lengths.
        blake3::hash(self.0.as_bytes()) == blake3::hash(shown.as_bytes())
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_token_is_made_once_private_and_read_afterwards() {
        let folder = tempfile::tempdir().unwrap();
        let data_dir = DataDir::at(folder.path());
        assert!(Token::read(&data_dir).unwrap().is_none());
        let made = Token::read_or_create(&data_dir).unwrap();
        let read = Token::read_or_create(&data_dir).unwrap();
        assert!(read.matches(&made.0) && !read.matches("") && !read.matches(&made.0[1..]));
        assert_eq!(
            std::fs::metadata(data_dir.api_token())
                .unwrap()
                .permissions()
                .mode()
                & 0o777,
            0o600
        );
        assert_eq!(format!("{made:?}"), "Token");
    }

    #[test]
    fn an_empty_token_file_lets_nobody_in() {
        let folder = tempfile::tempdir().unwrap();
        let data_dir = DataDir::at(folder.path());
        std::fs::write(data_dir.api_token(), "\n").unwrap();
        assert!(matches!(
            Token::read_or_create(&data_dir),
            Err(TokenError::Malformed { .. })
        ));
    }
}
