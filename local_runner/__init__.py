"""The heavy wing: trains, evaluates and answers on this machine, and stands in for the service."""
