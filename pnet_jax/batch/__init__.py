"""Construction of many networks on one machine or many: worker processes read and write, the devices compute in waves."""
