//! The command line as it is declared.

use clap::{CommandFactory, Parser};

use super::args::{Cli, Command};

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split(' '))
}

#[test]
fn the_definitions_hold_together() {
    Cli::command().debug_assert();
}

#[test]
fn every_command_is_read_as_the_contract_says() {
    for line in [
        "hyperfabric nodes",
        "hyperfabric nodes list --json",
        "hyperfabric nodes show rack1/gpu0 --data-dir /x",
        "hyperfabric nodes register f.yaml",
        "hyperfabric --json peers",
        "hyperfabric status",
        "hyperfabric ping a --count 3",
        "hyperfabric send f --to b --type tensor --priority bulk --timeout 1h --wait 0s --sync",
        "hyperfabric transfers",
        "hyperfabric transfers --follow",
        "hyperfabric transfers cancel 9f86d081884c7d659a2feaa0c55ad015",
        "hyperfabric transfers resume 9f86d081884c7d659a2feaa0c55ad015 --json",
        "hyperfabric mesh invite --name a --expires 24h --uses 2",
        "hyperfabric mesh members",
        "hyperfabric mesh revoke a",
        "hyperfabric config show",
        "hyperfabric config check",
        "hyperfabric completions zsh",
        "hyperfabric bootstrap --listen 127.0.0.1:0 --connections-max 8",
        "hyperfabric demo",
        "hyperfabric demo model.safetensors --keep --json",
    ] {
        parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
    }
}

#[test]
fn wrong_usage_exits_2() {
    for line in [
        "hyperfabric",
        "hyperfabric fly",
        "hyperfabric send f",
        "hyperfabric send f --to ../b",
        "hyperfabric send f --to b --priority urgent",
        "hyperfabric send f --to b --type thing",
        "hyperfabric send f --to b --timeout soon",
        "hyperfabric ping a --count 0",
        "hyperfabric ping a --count 1001",
        "hyperfabric transfers cancel 12",
        "hyperfabric transfers --follow cancel 9f86d081884c7d659a2feaa0c55ad015",
        "hyperfabric mesh invite",
        "hyperfabric mesh invite --name a --uses 0",
        "hyperfabric completions tcsh9",
    ] {
        assert_eq!(
            parse(line).err().unwrap_or_else(|| panic!("{line}")).exit_code(),
            2,
            "{line}"
        );
    }
}

#[test]
fn every_command_explains_itself_and_takes_the_common_options() {
    fn visit(command: &clap::Command) {
        assert!(
            command.get_about().is_some(),
            "{} says nothing",
            command.get_name()
        );
        for argument in command.get_arguments() {
            assert!(
                argument.get_help().is_some(),
                "{} {} says nothing",
                command.get_name(),
                argument.get_id()
            );
        }
        command.get_subcommands().for_each(visit);
    }
    visit(&Cli::command());
    for line in [
        "hyperfabric send --help",
        "hyperfabric mesh invite --help",
        "hyperfabric config show --help",
    ] {
        let help = parse(line).unwrap_err().to_string();
        assert!(help.contains("--data-dir") && help.contains("--json"), "{help}");
    }
}

#[test]
fn a_sent_path_defaults_as_the_contract_says() {
    let Command::Send(send) = parse("hyperfabric send f --to b").unwrap().command else {
        panic!("not a send")
    };
    assert_eq!(send.wait, std::time::Duration::from_secs(10));
    assert!(send.timeout.is_none() && !send.sync);
}
