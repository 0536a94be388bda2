"""Construction of many networks on one or several machines: worker processes read and write while the devices compute in waves."""
