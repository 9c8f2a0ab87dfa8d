"""What `aligndet verify` looks at, one concern a module. Each check yields sentences that say what is wrong."""
