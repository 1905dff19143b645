"""What each HTTP process of the system shares: settings, auth, errors as JSON, routes from the contract."""
