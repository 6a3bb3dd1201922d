"""The campaign of `fault_campaign.py`: processes to disturb, what is done to them, what is looked at afterwards."""
