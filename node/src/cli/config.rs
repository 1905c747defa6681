//! `hyperfabric config`: what is configured, and whether it is right. No daemon is asked.

use hyperfabric_node::api::{ApiError, ErrorCode};
use hyperfabric_node::config::{ConfigError, FabricConfig};
use serde_json::json;

use super::args::ConfigCommand;
use super::{Context, Failure};

pub(crate) fn run(context: &Context, command: &ConfigCommand) -> Result<(), Failure> {
    let path = context.data_dir.config();
    let config = FabricConfig::of(&context.data_dir).map_err(|error| explain(context, &error))?;
    match command {
        ConfigCommand::Show => context.out.answer(&config.to_value(), |_| config.to_yaml()),
        ConfigCommand::Check => {
            let exists = path.exists();
            context
                .out
                .answer(&json!({ "path": path, "exists": exists, "valid": true }), |_| {
                    let how = if exists {
                        "is right"
                    } else {
                        "does not exist; the defaults are in force"
                    };
                    format!("{} {how}", path.display())
                })
        }
    }
}

fn explain(context: &Context, error: &ConfigError) -> ApiError {
    let code = match error {
        ConfigError::File(_) => ErrorCode::Failed,
        ConfigError::Missing { .. } => ErrorCode::NotFound,
        ConfigError::Syntax { .. } | ConfigError::UnknownKey { .. } | ConfigError::BadValue { .. } => {
            ErrorCode::Usage
        }
    };
    ApiError::of(code, error).hint(format!(
        "the configuration is {}",
        context.data_dir.config().display()
    ))
}
